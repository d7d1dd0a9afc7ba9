//! Impact previews.

use domain::impact_preview::{ImpactPreview, PER_MACHINE_MAX, RefusedFile};
use store::impact_preview::{StoredImpactPreview, impact_preview_fetch, impact_preview_save};

use crate::fixture::{Database, enroll, machine_id, second};

fn preview(number: i64) -> ImpactPreview {
    let file = |position: i64| RefusedFile {
        path: format!("/tmp/{number}/{position}"),
        sha256: (position % 2 == 0).then(|| "ab".repeat(32)),
        cause: "unlisted".to_owned(),
        rule: (position % 2 == 1).then(|| "no".to_owned()),
        mapped_only: position % 2 == 1,
        last_seen: second(number),
        executions: 9,
        processes: 2,
        pids: vec![i32::MAX, -1],
    };
    ImpactPreview {
        taken_at: second(number),
        processes: 100,
        files: 200,
        history_days: (number % 2 == 0).then_some(7),
        is_cut: number % 2 == 1,
        refused_files: u64::from(u32::MAX),
        // Twelve, so that the order of text would be another one.
        refused: (0..12).map(file).collect(),
    }
}

async fn fetch(
    database: &Database,
    machine: i64,
    policy: &'static str,
    revision: u64,
) -> Option<StoredImpactPreview> {
    let id = machine_id(machine.try_into().unwrap());
    database.read(move |tx| impact_preview_fetch(tx, id, policy, revision)).await
}

#[tokio::test]
async fn the_last_preview_of_each_revision_is_kept_as_it_came() {
    let database = Database::new();
    database
        .write(|tx| {
            let (one, two) = (enroll(tx, 1)?, enroll(tx, 2)?);
            impact_preview_save(tx, one, "default", 1, &preview(1), second(11))?;
            impact_preview_save(tx, one, "default", 2, &preview(2), second(12))?;
            impact_preview_save(tx, two, "default", 1, &preview(3), second(13))?;
            impact_preview_save(tx, one, "default", 1, &preview(4), second(14))
        })
        .await;
    let kept = |number, received| {
        Some(StoredImpactPreview { preview: preview(number), received_at: second(received) })
    };
    assert_eq!(fetch(&database, 1, "default", 1).await, kept(4, 14));
    assert_eq!(fetch(&database, 1, "default", 2).await, kept(2, 12));
    assert_eq!(fetch(&database, 2, "default", 1).await, kept(3, 13));
    assert_eq!(fetch(&database, 2, "default", 2).await, None);
    assert_eq!(fetch(&database, 1, "other", 1).await, None);
}

#[tokio::test]
async fn the_previews_of_a_machine_that_came_first_make_room() {
    let database = Database::new();
    let most = u64::from(PER_MACHINE_MAX);
    database
        .write(move |tx| {
            let (one, two) = (enroll(tx, 1)?, enroll(tx, 2)?);
            impact_preview_save(tx, two, "default", 1, &preview(1), second(1))?;
            for revision in 1..=most + 2 {
                let received = second(100 + i64::try_from(revision).unwrap());
                impact_preview_save(tx, one, "default", revision, &preview(2), received)?;
            }
            Ok(())
        })
        .await;
    for revision in 1..=most + 2 {
        assert_eq!(fetch(&database, 1, "default", revision).await.is_some(), revision > 2, "{revision}");
    }
    assert!(fetch(&database, 2, "default", 1).await.is_some());
}
