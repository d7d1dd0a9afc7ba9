//! Machine groups: ranks, rules, and that every machine is in the right one at any time.

use super::*;

use control_plane::TagChange;
use domain::machine_group::{UNGROUPED, UNGROUPED_ID};

const NAME: RuleProperty = RuleProperty::Name;
const TAG: RuleProperty = RuleProperty::Tag;
const STARTS: RuleOperator = RuleOperator::StartsWith;
const EQUALS: RuleOperator = RuleOperator::Equals;

/// The groups by rank.
async fn ranked(control: &ControlPlane) -> Vec<(String, Option<u32>, u64)> {
    let groups = control.machine_group_list(&operator()).await.unwrap();
    groups.into_iter().map(|sized| (sized.group.name, sized.group.rank, sized.machines)).collect()
}

#[tokio::test]
async fn ranks_are_kept_without_gaps() {
    let deployment = Deployment::start(GENEROUS).await;
    let control = &deployment.control;
    let save = async |name: &str, to: &str, rank| {
        let draft = MachineGroupDraft { rank, ..group_draft(to, &[(NAME, STARTS, to)]) };
        control.machine_group_save(&operator(), name, draft).await
    };
    let order = async || {
        let groups = ranked(control).await;
        let ranks: Vec<_> = groups.iter().map(|(_, rank, _)| *rank).collect();
        let expected: Vec<_> = (1..u32::try_from(groups.len()).unwrap()).map(Some).chain([None]).collect();
        assert_eq!(ranks, expected);
        assert_eq!(groups.last().unwrap().0, UNGROUPED);
        groups.into_iter().take(ranks.len() - 1).map(|(name, _, _)| name).collect::<Vec<_>>().join(" ")
    };
    for name in ["a", "b", "c"] {
        save(name, name, None).await.unwrap();
    }
    assert_eq!(order().await, "a b c");
    save("d", "d", Some(1)).await.unwrap();
    assert_eq!(order().await, "d a b c");
    save("d", "d", Some(3)).await.unwrap();
    assert_eq!(order().await, "a b d c");
    save("d", "d", None).await.unwrap();
    assert_eq!(order().await, "a b d c");
    save("a", "z", Some(99)).await.unwrap();
    assert_eq!(order().await, "b d c z");
    save("b", "b2", None).await.unwrap();
    assert_eq!(order().await, "b2 d c z");
    control.machine_group_delete(&operator(), "d").await.unwrap();
    assert_eq!(order().await, "b2 c z");
    save("e", "e", Some(2)).await.unwrap();
    assert_eq!(order().await, "b2 e c z");
    let taken = save("e", "c", None).await;
    refused(taken, |error| matches!(error, Error::AlreadyExists(_)));
    refused(control.machine_group_delete(&operator(), "d").await, is_not_found);
    refused(control.machine_group_fetch(&operator(), "d").await, is_not_found);
    // The same again is no change.
    let before = deployment.operations().await.len();
    save("e", "e", Some(2)).await.unwrap();
    assert_eq!(deployment.operations().await.len(), before);
}

#[tokio::test]
async fn the_group_of_the_ungrouped_is_built_in() {
    let deployment = Deployment::start(GENEROUS).await;
    let control = &deployment.control;
    let save = async |draft| control.machine_group_save(&operator(), UNGROUPED, draft).await;
    let plain = || group_draft(UNGROUPED, &[]);
    refused(control.machine_group_delete(&operator(), UNGROUPED).await, is_disallowed);
    refused(save(group_draft(UNGROUPED, &[(NAME, EQUALS, "x")])).await, is_disallowed);
    refused(save(MachineGroupDraft { rank: Some(1), ..plain() }).await, is_disallowed);
    refused(save(group_draft("other", &[])).await, is_disallowed);
    let saved = save(MachineGroupDraft {
        description: "the rest".to_owned(),
        user_groups: texts(&["soc"]),
        policy: Some("default".to_owned()),
        ..plain()
    });
    let saved = saved.await.unwrap().group;
    assert_eq!((saved.id, saved.rank, saved.user_groups), (UNGROUPED_ID, None, texts(&["soc"])));
}

#[tokio::test]
async fn a_group_that_makes_no_sense_is_refused() {
    let deployment = Deployment::start(GENEROUS).await;
    let control = &deployment.control;
    let long = "x".repeat(257);
    let many = vec![(NAME, EQUALS, "x"); 201];
    for bad in [
        group_draft("", &[]),
        group_draft("a", &[(NAME, EQUALS, "")]),
        group_draft("a", &[(NAME, EQUALS, "a\nb")]),
        group_draft("a", &[(NAME, EQUALS, &long)]),
        group_draft("a", &many),
        MachineGroupDraft { rank: Some(0), ..group_draft("a", &[]) },
        MachineGroupDraft { policy: Some("nowhere".to_owned()), ..group_draft("a", &[]) },
        MachineGroupDraft { user_groups: texts(&[""]), ..group_draft("a", &[]) },
    ] {
        refused(control.machine_group_preview(&operator(), "a", bad.clone()).await, is_invalid);
        refused(control.machine_group_save(&operator(), "a", bad).await, is_invalid);
    }
    assert_eq!(ranked(control).await.len(), 1);
}

#[tokio::test]
async fn a_machine_is_in_the_right_group_whatever_changes() {
    let deployment = Deployment::start(GENEROUS).await;
    let control = &deployment.control;
    let machine = Machine::join(&deployment, 7).await;
    let id = machine.id;
    let tag = async |tag: &str, change| {
        control.machine_tag(&operator(), &id.to_string(), tag, change).await.unwrap()
    };
    assert_eq!(deployment.group_of(id).await, UNGROUPED);
    deployment.group("labs", &[(NAME, STARTS, "lab")], &[]).await;
    assert_eq!(deployment.group_of(id).await, "labs");
    // Of two that take it, the one of the higher rank.
    deployment.group("sevens", &[(NAME, EQUALS, "lab-7")], &[]).await;
    assert_eq!(deployment.group_of(id).await, "labs");
    let first = MachineGroupDraft { rank: Some(1), ..group_draft("sevens", &[(NAME, EQUALS, "lab-7")]) };
    control.machine_group_save(&operator(), "sevens", first).await.unwrap();
    assert_eq!(deployment.group_of(id).await, "sevens");
    // A rule that takes it no more.
    deployment.group("sevens", &[(TAG, EQUALS, "finance")], &[]).await;
    assert_eq!(deployment.group_of(id).await, "labs");
    assert_eq!(tag(" finance ", TagChange::Add).await.group_name, "sevens");
    // The same again is no change.
    tag("finance", TagChange::Add).await;
    assert_eq!(tag("finance", TagChange::Remove).await.group_name, "labs");
    tag("finance", TagChange::Remove).await;
    // Another name.
    machine.connect_as(&deployment, "web-7", 0, false).await;
    assert_eq!(deployment.group_of(id).await, UNGROUPED);
    tag("finance", TagChange::Add).await;
    assert_eq!(deployment.group_of(id).await, "sevens");
    machine.connect_as(&deployment, "lab-7", 0, false).await;
    assert_eq!(deployment.group_of(id).await, "sevens");
    control.machine_group_delete(&operator(), "sevens").await.unwrap();
    assert_eq!(deployment.group_of(id).await, "labs");
    control.machine_group_delete(&operator(), "labs").await.unwrap();
    assert_eq!(deployment.group_of(id).await, UNGROUPED);
    // A machine that enrolls is grouped by its name at once.
    deployment.group("labs", &[(NAME, STARTS, "lab")], &[]).await;
    let mut other = Machine { id: MachineId([8; 20]), incarnation: 0, gate: SigningKey::from_seed(&[8; 32]) };
    other.enroll(&deployment).await;
    assert_eq!(deployment.group_of(other.id).await, "labs");
    let tags = deployment.operations().await.into_iter().filter(|name| name.starts_with("machine_tag"));
    assert_eq!(tags.collect::<Vec<_>>(), ["machine_tag_add", "machine_tag_remove", "machine_tag_add"]);
}

#[tokio::test]
async fn tags_are_short_printable_and_few() {
    let deployment = Deployment::start(GENEROUS).await;
    let machine = Machine::join(&deployment, 7).await;
    let target = machine.id.to_string();
    let tag =
        async |tag: &str| deployment.control.machine_tag(&operator(), &target, tag, TagChange::Add).await;
    for bad in ["", "  ", "a\nb", &"x".repeat(201)] {
        refused(tag(bad).await, is_invalid);
    }
    for number in 0..100 {
        tag(&format!("t{number}")).await.unwrap();
    }
    refused(tag("one more").await, is_invalid);
    assert_eq!(tag("t5").await.unwrap().tags.len(), 100);
}

/// Numbers that look random and are the same in every run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % sides
    }

    fn draft(&mut self, name: &str) -> MachineGroupDraft {
        const VALUES: [&str; 6] = ["fleet-1", "fleet-2", "1", "x", "Fleet", ""];
        let conditions = (0..self.roll(4)).map(|_| Condition {
            property: [NAME, TAG, RuleProperty::OsPlatform][self.roll(3)],
            operator: RuleOperator::ALL[self.roll(4)],
            value: VALUES[self.roll(5)].to_owned(),
        });
        let rule = conditions.collect();
        let rank = u32::try_from(self.roll(6)).ok().filter(|rank| *rank > 0);
        MachineGroupDraft { rule, rank, ..group_draft(name, &[]) }
    }
}

#[tokio::test]
async fn a_preview_is_what_saving_then_does() {
    let deployment = Deployment::start(GENEROUS).await;
    let control = &deployment.control;
    let mut dice = Dice(1);
    for id in deployment.enroll_many(40).await {
        for _ in 0..dice.roll(3) {
            let tag = ["x", "1", "fleet-1"][dice.roll(3)];
            control.machine_tag(&operator(), &id.to_string(), tag, TagChange::Add).await.unwrap();
        }
    }
    let members = async |name: &str| {
        let query = format!("$filter=rbacGroupName eq '{name}'");
        let query = odata::parse(&query, &store::list::MACHINES).unwrap();
        let page = control.machine_list(&operator(), query).await.unwrap();
        page.rows.into_iter().map(|machine| machine.id).collect::<HashSet<_>>()
    };
    let mut moved = 0;
    for _ in 0..80 {
        let name = ["a", "b", "c", "d"][dice.roll(4)];
        let draft = dice.draft(name);
        let before = members(name).await;
        let preview = control.machine_group_preview(&operator(), name, draft.clone()).await.unwrap();
        assert_eq!(members(name).await, before, "a preview changes nothing");
        let saved = control.machine_group_save(&operator(), name, draft.clone()).await.unwrap();
        let after = members(name).await;
        assert_eq!(preview.machines, after.len() as u64, "{draft:?}");
        assert_eq!(saved.machines, after.len() as u64, "{draft:?}");
        assert_eq!(preview.joining, after.difference(&before).count() as u64, "{draft:?}");
        assert_eq!(preview.leaving, before.difference(&after).count() as u64, "{draft:?}");
        let examples: HashSet<_> = preview.examples.iter().map(|(id, _)| *id).collect();
        assert_eq!(examples, after);
        moved += preview.joining + preview.leaving;
    }
    assert!(moved > 100, "only {moved} machines moved: this tests little");
    // Nothing is left over: each machine is in one group.
    let total: u64 = ranked(control).await.into_iter().map(|(_, _, machines)| machines).sum();
    assert_eq!(total, 40);
}

#[tokio::test]
async fn groups_are_administered_by_who_sees_all_machines() {
    let deployment = Deployment::start(GENEROUS).await;
    Machine::join(&deployment, 1).await;
    Machine::join(&deployment, 2).await;
    deployment.group("closed", &[(NAME, EQUALS, "lab-2")], &["others"]).await;
    deployment.role("admin", &[Right::ManagePortalSystemSettings], &["admins"]).await;
    let caller = deployment.person("ann@idp", &["admins"]);
    let draft = MachineGroupDraft { rank: Some(1), ..group_draft("labs", &[(NAME, STARTS, "lab")]) };
    let preview = deployment.control.machine_group_preview(&caller, "labs", draft.clone()).await;
    refused(preview, is_disallowed);
    deployment.group("closed", &[(NAME, EQUALS, "lab-2")], &["admins"]).await;
    let caller = deployment.person("ann@idp", &["admins"]);
    let preview = deployment.control.machine_group_preview(&caller, "labs", draft).await.unwrap();
    let examples = [1, 2].map(|number| (MachineId([number; 20]), format!("lab-{number}")));
    assert_eq!((preview.machines, preview.joining), (2, 2));
    assert_eq!(preview.examples, examples);
}

#[tokio::test]
async fn machines_that_connect_while_groups_change_end_in_the_right_one() {
    let deployment = Deployment::start(GENEROUS).await;
    let mut machines = Vec::new();
    for number in 1..9 {
        machines.push(Machine::join(&deployment, number).await);
    }
    for round in 0..8 {
        let name = format!("round-{round}");
        let rule = [(NAME, STARTS, "lab")];
        let draft = MachineGroupDraft { rank: Some(1), ..group_draft(&name, &rule) };
        let caller = operator();
        let save = deployment.control.machine_group_save(&caller, &name, draft);
        let connect = async {
            for machine in &machines {
                let name = if round % 2 == 0 { "web" } else { "lab" };
                machine.connect_as(&deployment, name, 0, false).await;
                machine.connect(&deployment, 0, false).await;
            }
        };
        let (saved, ()) = tokio::join!(save, connect);
        saved.unwrap();
        for machine in &machines {
            assert_eq!(deployment.group_of(machine.id).await, name);
        }
    }
}
