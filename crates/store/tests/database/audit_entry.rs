//! The audit log.

use domain::audit_entry::AuditEntry;
use proptest::prelude::*;
use store::audit_entry::{AuditFilter, audit_entry_create, audit_entry_create_many, audit_entry_list};

use crate::fixture::{Database, entry, newest, second};

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
    let last = database.read(|tx| audit_entry_list(tx, &newest(2))).await;
    let subjects = |entries: &[(i64, AuditEntry)]| {
        entries.iter().map(|(_, entry)| entry.subject.clone()).collect::<Vec<_>>()
    };
    assert_eq!(subjects(&last), ["machine 5", "machine 4"]);
    let (_, first) = &last[0];
    let expected = AuditEntry {
        at: second(5),
        actor: "system".to_owned(),
        operation: "machine_restrict".to_owned(),
        subject: "machine 5".to_owned(),
        detail: "it's \"so\"".to_owned(),
    };
    assert_eq!(first, &expected);
    let before = last[1].0;
    let rest = database
        .read(move |tx| audit_entry_list(tx, &AuditFilter { before: Some(before), ..newest(100) }))
        .await;
    assert_eq!(subjects(&rest), ["machine 3", "machine 2", "machine 1"]);
}

#[tokio::test]
async fn thousands_of_entries_are_written_at_once() {
    let database = Database::new();
    let entries: Vec<_> = (0..2500).map(|number| entry(&number.to_string())).collect();
    let written = entries.clone();
    database
        .write(move |tx| audit_entry_create_many(tx, &written).and(audit_entry_create_many(tx, &[])))
        .await;
    let listed = database.read(|tx| audit_entry_list(tx, &newest(u32::MAX))).await;
    assert_eq!(listed.into_iter().rev().map(|(_, entry)| entry).collect::<Vec<_>>(), entries);
}

fn filter() -> impl Strategy<Value = AuditFilter> {
    let time = || proptest::option::of((0_i64..8).prop_map(second));
    let text = || proptest::option::of("[ab]");
    (proptest::option::of(0_i64..40), time(), time(), text(), text(), text(), 0_u32..40).prop_map(
        |(before, since, until, actor, operation, subject, top)| AuditFilter {
            before,
            since,
            until,
            actor,
            operation,
            subject,
            top,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// The clock may have been set back: times do not rise with the numbers.
    #[test]
    fn a_filter_admits_what_it_says(
        entries in proptest::collection::vec((0_i64..8, "[ab]", "[ab]", "[ab]"), 0..30),
        filters in proptest::collection::vec(filter(), 20),
    ) {
        let entries: Vec<_> = entries
            .into_iter()
            .map(|(at, actor, operation, subject)| AuditEntry {
                at: second(at), actor, operation, subject, detail: String::new(),
            })
            .collect();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let database = Database::new();
            let written = entries.clone();
            database.write(move |tx| audit_entry_create_many(tx, &written)).await;
            let mut newest_first: Vec<_> = (1_i64..).zip(entries).collect();
            newest_first.sort_by_key(|(number, entry)| std::cmp::Reverse((entry.at, *number)));
            for filter in filters {
                let behind = newest_first.iter().position(|(number, _)| Some(*number) == filter.before);
                let is = |wanted: &Option<String>, text: &String| wanted.as_ref().is_none_or(|wanted| wanted == text);
                let expected: Vec<_> = newest_first
                    .iter()
                    .skip(behind.map_or(0, |position| position + 1))
                    .filter(|(number, entry)| {
                        (behind.is_some() || filter.before.is_none_or(|before| *number < before))
                            && filter.since.is_none_or(|since| entry.at >= since)
                            && filter.until.is_none_or(|until| entry.at < until)
                            && is(&filter.actor, &entry.actor)
                            && is(&filter.operation, &entry.operation)
                            && is(&filter.subject, &entry.subject)
                    })
                    .take(filter.top as usize)
                    .cloned()
                    .collect();
                let asked = filter.clone();
                let found = database.read(move |tx| audit_entry_list(tx, &asked)).await;
                assert_eq!(found, expected, "{filter:?}");
            }
        });
    }
}
