//! The database cannot be used: locked, full, foreign or damaged.

use std::path::Path;
use std::process::Command;

use domain::audit_entry::AuditEntry;
use store::audit_entry::{audit_entry_create, audit_entry_list};
use store::machine_action::{machine_action_create, machine_action_fetch};
use store::{Store, StoreError};

use crate::fixture::{Database, action, enroll, entry, machine_id, newest};

async fn count(store: &Store) -> usize {
    store
        .read(|tx| audit_entry_list(tx, &newest(10_000)))
        .await
        .unwrap_or_else(|error: StoreError| panic!("{error}"))
        .len()
}

#[tokio::test]
async fn a_locked_database_is_unavailable_until_it_is_let_go() {
    let database = Database::new();
    database.write(|tx| audit_entry_create(tx, &entry("before"))).await;
    let outside = database.outside();
    outside.execute_batch("BEGIN IMMEDIATE").unwrap();
    let waiting: Vec<_> = (0..10)
        .map(|_| {
            let store = database.store.clone();
            tokio::spawn(async move { store.write(|tx| audit_entry_create(tx, &entry("refused"))).await })
        })
        .collect();
    // Reading goes on.
    assert_eq!(count(&database.store).await, 1);
    for refused in waiting {
        let refused = refused.await.unwrap();
        assert!(matches!(refused, Err(StoreError::Unavailable(_))), "{refused:?}");
    }
    outside.execute_batch("ROLLBACK").unwrap();
    database.write(|tx| audit_entry_create(tx, &entry("after"))).await;
    let entries = database.read(|tx| audit_entry_list(tx, &newest(9))).await;
    let subjects: Vec<_> = entries.iter().map(|(_, entry)| entry.subject.as_str()).collect();
    assert_eq!(subjects, ["after", "before"]);
}

#[tokio::test]
async fn a_lock_that_is_let_go_in_time_is_waited_for() {
    let database = Database::new();
    let outside = database.outside();
    outside.execute_batch("BEGIN IMMEDIATE").unwrap();
    let store = database.store.clone();
    let waiting =
        tokio::spawn(async move { store.write(|tx| audit_entry_create(tx, &entry("patient"))).await });
    tokio::task::yield_now().await;
    outside.execute_batch("ROLLBACK").unwrap();
    waiting.await.unwrap().unwrap();
    assert_eq!(count(&database.store).await, 1);
}

/// Tells the process that it has a small disk to itself, and where.
const SMALL_DISK: &str = "CORDON_TEST_SMALL_DISK";

/// Runs itself in a mount namespace of its own, with a small filesystem in memory: needs root.
#[test]
fn a_full_disk_is_unavailable_and_loses_nothing() {
    if let Some(disk) = std::env::var_os(SMALL_DISK) {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(fill(Path::new(&disk)));
        return;
    }
    let disk = tempfile::tempdir().unwrap();
    let script = "mount -t tmpfs -o size=6m tmpfs \"$0\" && exec \"$@\"";
    let output = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-c", script])
        .arg(disk.path())
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "fault::a_full_disk_is_unavailable_and_loses_nothing", "--nocapture"])
        .env(SMALL_DISK, disk.path())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

async fn fill(disk: &Path) {
    let path = disk.join("cordon.db");
    // What is given back when the disk is full.
    let ballast = disk.join("ballast");
    std::fs::write(&ballast, vec![7; 2 << 20]).unwrap();
    let store = Store::open(&path).unwrap();
    let large = || AuditEntry { detail: "x".repeat(60_000), ..entry("large") };
    let mut kept = 0;
    let error = loop {
        match store.write(move |tx| audit_entry_create(tx, &large())).await {
            Ok(()) => kept += 1,
            Err(error) => break error,
        }
        assert!(kept < 200, "the disk does not fill up");
    };
    assert!(matches!(error, StoreError::Unavailable(_)), "{error:?}");
    assert!(kept > 10);
    // Full is full, for each that asks, and reading goes on.
    for _ in 0..5 {
        let refused = store.write(move |tx| audit_entry_create(tx, &large())).await;
        assert!(matches!(refused, Err(StoreError::Unavailable(_))), "{refused:?}");
        assert_eq!(count(&store).await, kept);
    }
    std::fs::remove_file(ballast).unwrap();
    store
        .write(move |tx| audit_entry_create(tx, &large()))
        .await
        .unwrap_or_else(|error: StoreError| panic!("{error:?}"));
    assert_eq!(count(&store).await, kept + 1);
    drop(store);
    let store = Store::open(&path).unwrap();
    assert_eq!(count(&store).await, kept + 1);
}

/// Why a store cannot be opened.
fn open_error(path: &Path) -> StoreError {
    match Store::open(path) {
        Ok(_) => panic!("{} opens", path.display()),
        Err(error) => error,
    }
}

#[tokio::test]
async fn tables_of_a_newer_or_another_cordon_are_refused() {
    let database = Database::new();
    database.write(|tx| audit_entry_create(tx, &entry("kept"))).await;
    let outside = database.outside();
    outside.execute("INSERT INTO migration (name, sha256) VALUES ('9999_future', '')", []).unwrap();
    let error = open_error(&database.path());
    assert!(matches!(error, StoreError::Unsupported(_)), "{error:?}");
    assert!(error.to_string().contains("9999_future"), "{error}");
    outside.execute("DELETE FROM migration WHERE name = '9999_future'", []).unwrap();
    assert_eq!(count(&Store::open(&database.path()).unwrap()).await, 1);
    outside.execute("UPDATE migration SET sha256 = 'changed'", []).unwrap();
    assert!(matches!(open_error(&database.path()), StoreError::Unsupported(_)));
}

#[tokio::test]
async fn a_file_that_is_no_database_is_unavailable_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cordon.db");
    let text = "this is no database ".repeat(1000);
    std::fs::write(&path, &text).unwrap();
    assert!(matches!(open_error(&path), StoreError::Unavailable(_)));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
    assert!(matches!(open_error(&folder.path().join("missing/cordon.db")), StoreError::Unavailable(_)));
    assert!(matches!(open_error(folder.path()), StoreError::Unavailable(_)));
}

#[tokio::test]
async fn a_stored_value_without_meaning_is_named() {
    let database = Database::new();
    let action = action(machine_id(1), 1);
    let id = action.id;
    database.write(move |tx| enroll(tx, 1).and_then(|_| machine_action_create(tx, &action, "order"))).await;
    for (damage, named) in
        [("phase = 77", "phase 77"), ("phase = 0, kind = 9", "kind 9"), ("kind = 0, machine = 'x'", "x")]
    {
        let outside = database.outside();
        outside
            .execute_batch(&format!("PRAGMA foreign_keys = 0; UPDATE machine_action SET {damage}"))
            .unwrap();
        let error = database.store.read(move |tx| machine_action_fetch(tx, id)).await.unwrap_err();
        let StoreError::Damaged(what) = error else { panic!("{error:?}") };
        assert!(what.contains(named), "{what}");
    }
}
