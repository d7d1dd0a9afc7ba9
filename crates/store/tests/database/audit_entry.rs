//! The audit log.

use domain::audit_entry::AuditEntry;
use store::audit_entry::{audit_entry_create, audit_entry_list};

use crate::fixture::{Database, entry, second};

#[tokio::test]
async fn entries_are_listed_newest_first_and_backward_by_number() {
    let database = Database::new();
    for number in 1..=5 {
        let entry = AuditEntry {
            at: second(number),
            actor: AuditEntry::SYSTEM.to_owned(),
            detail: "it's \"so\"".to_owned(),
            ..entry(&format!("machine {number}"))
        };
        database.write(move |tx| audit_entry_create(tx, &entry)).await;
    }
    let newest = database.read(|tx| audit_entry_list(tx, i64::MAX, 2)).await;
    let subjects = |entries: &[(i64, AuditEntry)]| {
        entries.iter().map(|(_, entry)| entry.subject.clone()).collect::<Vec<_>>()
    };
    assert_eq!(subjects(&newest), ["machine 5", "machine 4"]);
    let (_, first) = &newest[0];
    let expected = AuditEntry {
        at: second(5),
        actor: "system".to_owned(),
        operation: "machine_restrict".to_owned(),
        subject: "machine 5".to_owned(),
        detail: "it's \"so\"".to_owned(),
    };
    assert_eq!(first, &expected);
    let before = newest[1].0;
    let rest = database.read(move |tx| audit_entry_list(tx, before, 100)).await;
    assert_eq!(subjects(&rest), ["machine 3", "machine 2", "machine 1"]);
}
