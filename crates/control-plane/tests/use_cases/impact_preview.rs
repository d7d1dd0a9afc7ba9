//! Impact previews.

use std::time::Duration;

use control_plane::{Error, PreviewFound, PreviewStanding};
use domain::allow_policy::{AllowPolicy, Profile};
use domain::digest::Sha256Digest;
use domain::impact_preview::{ImpactPreview, RefusedFile};
use domain::machine::MachineId;

use crate::{Deployment, GENEROUS, operator};

const AGE_MAX: Duration = Duration::from_secs(300);

async fn found(
    deployment: &Deployment,
    machine: MachineId,
    policy: Option<&str>,
    age_max: Duration,
) -> PreviewFound {
    let id = machine.to_string();
    deployment.control.impact_preview_fetch(&operator(), &id, policy, age_max).await.unwrap()
}

fn preview() -> ImpactPreview {
    let refused = vec![RefusedFile { path: "/tmp/x".to_owned(), ..RefusedFile::default() }];
    ImpactPreview { files: 9, refused_files: 1, refused, ..ImpactPreview::default() }
}

#[tokio::test]
async fn a_machine_is_asked_when_nothing_young_enough_is_kept() {
    let deployment = Deployment::start(GENEROUS).await;
    let machine = deployment.enroll_many(1).await[0];
    let wanted = || deployment.told.2.lock().unwrap().clone();
    let digest = deployment.control.policy_fetch(&operator(), "default").await.unwrap().digest;
    let first = found(&deployment, machine, None, AGE_MAX).await;
    assert_eq!((first.policy.as_str(), first.revision), ("default", 1));
    assert_eq!((first.standing, first.kept), (Some(PreviewStanding::NotConnected), None));
    deployment.told.1.lock().unwrap().insert(machine);
    let second = found(&deployment, machine, Some("default"), AGE_MAX).await;
    assert_eq!(second.standing, Some(PreviewStanding::Underway { files_done: 1, files_total: 2 }));
    assert_eq!(wanted(), [(machine, digest); 2]);
    deployment.control.impact_preview_store(machine, digest, preview()).await.unwrap();
    let third = found(&deployment, machine, None, AGE_MAX).await;
    assert_eq!((third.standing, third.kept.map(|kept| kept.preview)), (None, Some(preview())));
    assert_eq!(wanted().len(), 2);
    // What is kept is shown while a younger one is made.
    let fourth = found(&deployment, machine, None, Duration::ZERO).await;
    assert!(fourth.standing.is_some() && fourth.kept.is_some());
    // The next revision has no preview yet.
    let policy = AllowPolicy {
        name: "default".to_owned(),
        revision: 0,
        profile: Profile::OsOnly,
        ..policy_before(&deployment).await
    };
    deployment.control.policy_apply(&operator(), policy, false).await.unwrap();
    let fifth = found(&deployment, machine, None, AGE_MAX).await;
    assert_eq!((fifth.revision, fifth.kept), (2, None));
}

async fn policy_before(deployment: &Deployment) -> AllowPolicy {
    deployment.control.policy_fetch(&operator(), "default").await.unwrap().policy
}

#[tokio::test]
async fn unknown_policies_and_machines_are_not_found_and_foreign_digests_kept_by_nobody() {
    let deployment = Deployment::start(GENEROUS).await;
    let machine = deployment.enroll_many(1).await[0];
    let id = machine.to_string();
    let fetch = async |target: &str, policy| {
        deployment.control.impact_preview_fetch(&operator(), target, policy, AGE_MAX).await.unwrap_err()
    };
    assert!(matches!(fetch(&id, Some("none")).await, Error::NotFound { entity: "Policy", .. }));
    assert!(matches!(fetch("none", None).await, Error::NotFound { entity: "Machine", .. }));
    let foreign = Sha256Digest([9; 32]);
    deployment.control.impact_preview_store(machine, foreign, preview()).await.unwrap();
    assert_eq!(found(&deployment, machine, None, AGE_MAX).await.kept, None);
}
