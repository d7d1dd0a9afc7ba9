//! The process is killed in the middle of writing.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use domain::machine::MachineId;
use domain::machine_action::MachineActionId;
use domain::machine_group::MachineAccess;
use store::audit_entry::{audit_entry_create, audit_entry_list};
use store::list::machine_action_list;
use store::machine::{machine_enroll, machine_fetch};
use store::machine_action::{machine_action_create, machine_action_fetch};
use store::{Store, StoreError};
use uuid::Uuid;

use crate::fixture::{action, entry, newest, second};

/// Tells the process that it is the one to be killed, and where it is to write.
const DATABASE: &str = "CORDON_TEST_CRASH_DATABASE";
/// What an answered write looks like in the output.
const ANSWERED: &str = "answered ";
const ROUNDS: usize = 5;
const WRITERS: usize = 16;

#[test]
fn what_was_answered_before_a_kill_is_there_after_it() {
    if let Some(path) = std::env::var_os(DATABASE) {
        write_without_end(Path::new(&path));
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cordon.db");
    let mut answered: Vec<Uuid> = Vec::new();
    for round in 0..ROUNDS {
        answered.extend(killed_after(200 + 150 * round, &path));
        check(&path, &answered);
    }
    assert!(answered.len() >= ROUNDS * 200);
}

/// Lets a process write until so many writes were answered, and kills it. All answers that it printed.
fn killed_after(writes: usize, path: &Path) -> Vec<Uuid> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "crash::what_was_answered_before_a_kill_is_there_after_it", "--nocapture"])
        .env(DATABASE, path)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut next =
        || lines.find_map(|line| line.unwrap().strip_prefix(ANSWERED).map(|id| id.parse().unwrap()));
    let mut answered: Vec<Uuid> = std::iter::from_fn(&mut next).take(writes).collect();
    assert_eq!(answered.len(), writes, "the writing process ended by itself");
    // SIGKILL.
    child.kill().unwrap();
    child.wait().unwrap();
    answered.extend(std::iter::from_fn(next));
    answered
}

/// Every answered write is there, and each write that is there is there as a whole.
fn check(path: &Path, answered: &[Uuid]) {
    let outside = rusqlite::Connection::open(path).unwrap();
    let sound: String = outside.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(sound, "ok");
    let answered = answered.to_vec();
    let job = move |tx: &store::Tx<'_>| {
        for id in answered {
            let action = machine_action_fetch(tx, MachineActionId(id))?.expect("an answered action is gone");
            machine_fetch(tx, action.machine)?.expect("its machine is gone");
        }
        let all = machine_action_list(
            tx,
            &odata::Query { count: true, ..odata::Query::default() },
            &MachineAccess::All,
        )?;
        let audited = audit_entry_list(tx, &newest(u32::MAX))?.len() as u64;
        assert_eq!(all.count, Some(audited), "an action without its audit entry, or the other way around");
        Ok::<_, StoreError>(())
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async { Store::open(path)?.read(job).await }).unwrap();
}

/// Writes actions with their machine and audit entry, several at once, and prints the id of each once it is answered.
fn write_without_end(path: &Path) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let store = Store::open(path).unwrap();
        let writers: Vec<_> = (0..WRITERS)
            .map(|_| {
                let store = store.clone();
                tokio::spawn(async move {
                    loop {
                        let id = write_one(&store).await;
                        println!("{ANSWERED}{id}");
                    }
                })
            })
            .collect();
        for writer in writers {
            writer.await.unwrap()
        }
    });
}

async fn write_one(store: &Store) -> Uuid {
    let mut machine = [0; 20];
    machine[..16].copy_from_slice(Uuid::new_v4().as_bytes());
    let action = action(MachineId(machine), 1);
    let id = action.id.0;
    let job = move |tx: &store::Tx<'_>| {
        machine_enroll(tx, action.machine, "key", "host", second(1))?;
        machine_action_create(tx, &action, &"o".repeat(500))?;
        audit_entry_create(tx, &entry(&id.to_string()))
    };
    store.write::<_, StoreError>(job).await.unwrap();
    id
}
