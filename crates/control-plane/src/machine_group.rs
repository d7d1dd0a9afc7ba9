//! Machine groups: made, ranked, changed, deleted, previewed; and which machine is in which.

use domain::machine::{Machine, MachineId};
use domain::machine_group::{
    CONDITIONS_MAX, Condition, Grouping, MachineAccess, MachineGroup, RuleFacts, VALUE_CHARS_MAX,
};
use domain::permission::Requirement;
use store::machine::{MachineFacts, machine_facts, machine_group_assign, machine_group_sizes};
use store::machine_group::{
    machine_group_create, machine_group_delete, machine_group_list, machine_group_ranks_set,
    machine_group_update,
};
use store::policy::policy_digest;
use store::{StoreError, Tx};

use crate::{Caller, ControlPlane, Error, Result, audit, now, text};

/// The most groups: each machine that connects is compared with all rules.
const GROUPS_MAX: usize = 1000;
/// Machines that are looked at in one statement.
const FACTS_BATCH: u32 = 10_000;
/// Machines that a preview names.
const PREVIEW_MACHINES_MAX: usize = 100;

/// What a group is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineGroupDraft {
    /// Its name.
    pub name: String,
    /// What it is for.
    pub description: String,
    /// Its rank; a new group without one comes last, an old one keeps its own. Others make room.
    pub rank: Option<u32>,
    /// Which machines it takes.
    pub rule: Vec<Condition>,
    /// The user groups that see its machines.
    pub user_groups: Vec<String>,
    /// The allow policy of its machines.
    pub policy: Option<String>,
}

/// A group with the number of its machines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SizedMachineGroup {
    /// The group.
    pub group: MachineGroup,
    /// How many machines are in it.
    pub machines: u64,
}

/// What saving a group would do.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MachineGroupPreview {
    /// How many machines would be in it.
    pub machines: u64,
    /// How many would come in from other groups.
    pub joining: u64,
    /// How many would leave it.
    pub leaving: u64,
    /// Some that would be in it, with their names.
    pub examples: Vec<(MachineId, String)>,
}

impl ControlPlane {
    /// All groups by rank, that of the ungrouped last.
    ///
    /// # Errors
    /// [`Error::Forbidden`]; from the store.
    pub async fn machine_group_list(&self, caller: &Caller) -> Result<Vec<SizedMachineGroup>> {
        caller.require(Requirement::ADMINISTER)?;
        self.0.store.read(sized).await
    }

    /// The group with this name.
    ///
    /// # Errors
    /// [`Error::Forbidden`], [`Error::NotFound`]; from the store.
    pub async fn machine_group_fetch(&self, caller: &Caller, name: &str) -> Result<SizedMachineGroup> {
        caller.require(Requirement::ADMINISTER)?;
        let name = name.to_owned();
        self.0.store.read(move |tx| named(tx, &name)).await
    }

    /// Makes a group, or changes the one named `name` (also its name, when the draft has another one). Every machine is
    /// in the right group when this returns.
    ///
    /// # Errors
    /// [`Error::Forbidden`], [`Error::InvalidInput`], [`Error::AlreadyExists`], [`Error::Disallowed`]; from the store.
    pub async fn machine_group_save(
        &self,
        caller: &Caller,
        name: &str,
        draft: MachineGroupDraft,
    ) -> Result<SizedMachineGroup> {
        caller.require(Requirement::ADMINISTER)?;
        let draft = checked(draft)?;
        let (actor, name) = (caller.name().to_owned(), name.to_owned());
        let saved = self.0.store.write(move |tx| save(tx, &actor, &name, draft)).await?;
        self.access_refresh().await?;
        Ok(saved)
    }

    /// Deletes a group; its machines go to the next group whose rule takes them.
    ///
    /// # Errors
    /// [`Error::Forbidden`], [`Error::NotFound`], [`Error::Disallowed`] for that of the ungrouped; from the store.
    pub async fn machine_group_delete(&self, caller: &Caller, name: &str) -> Result<()> {
        caller.require(Requirement::ADMINISTER)?;
        let (actor, name) = (caller.name().to_owned(), name.to_owned());
        self.0
            .store
            .write(move |tx| {
                let group = named(tx, &name)?.group;
                if group.is_ungrouped() {
                    return Err(Error::Disallowed(format!("the group {name:?} is built in")));
                }
                let mut groups = machine_group_list(tx)?;
                groups.retain(|other| other.id != group.id);
                let moved = regroup(tx, &groups)?;
                machine_group_delete(tx, group.id)?;
                // Only now its rank is free.
                ranks_set(tx, &groups)?;
                let detail = format!("{moved} machines moved");
                Ok(audit::record(tx, now(), &actor, "machine_group_delete", &name, detail)?)
            })
            .await?;
        self.access_refresh().await
    }

    /// What [`Self::machine_group_save`] would do. Machines that the caller may not see are counted, not named.
    ///
    /// # Errors
    /// As [`Self::machine_group_save`].
    pub async fn machine_group_preview(
        &self,
        caller: &Caller,
        name: &str,
        draft: MachineGroupDraft,
    ) -> Result<MachineGroupPreview> {
        caller.require(Requirement::ADMINISTER)?;
        let draft = checked(draft)?;
        let (name, access) = (name.to_owned(), caller.machines.clone());
        self.0.store.read_list(move |tx| preview(tx, &name, draft, &access)).await
    }
}

/// Puts a machine into its group; whether it moved. Called whenever what rules look at may have changed.
pub(crate) fn machine_regroup(tx: &Tx<'_>, groups: &[MachineGroup], machine: &Machine) -> Result<bool> {
    let facts = RuleFacts {
        computer_dns_name: &machine.system.computer_dns_name,
        os_platform: &machine.system.os_platform,
        tags: &machine.tags,
    };
    let group = Grouping::new(groups).group_of(&facts);
    if group == machine.group {
        return Ok(false);
    }
    machine_group_assign(tx, &[(machine.id, group)])?;
    Ok(true)
}

fn checked(draft: MachineGroupDraft) -> Result<MachineGroupDraft> {
    if draft.rule.len() > CONDITIONS_MAX {
        return Err(Error::InvalidInput(format!("a rule has at most {CONDITIONS_MAX} conditions")));
    }
    let is_value = |value: &str| {
        (1..=VALUE_CHARS_MAX).contains(&value.chars().count()) && !value.chars().any(char::is_control)
    };
    if let Some(bad) = draft.rule.iter().find(|condition| !is_value(&condition.value)) {
        return Err(Error::InvalidInput(format!(
            "the value of a condition on {} has 1 to {VALUE_CHARS_MAX} printable characters",
            bad.property.name()
        )));
    }
    if draft.rank == Some(0) {
        return Err(Error::InvalidInput("the highest rank is 1".to_owned()));
    }
    let mut rule = draft.rule;
    rule.sort_unstable();
    rule.dedup();
    Ok(MachineGroupDraft {
        name: text::name("a machine group", &draft.name)?,
        description: text::description("a machine group", &draft.description)?,
        rank: draft.rank,
        rule,
        user_groups: text::user_groups(draft.user_groups)?,
        policy: draft.policy,
    })
}

fn sized(tx: &Tx<'_>) -> Result<Vec<SizedMachineGroup>> {
    let sizes = machine_group_sizes(tx)?;
    let sized = |group: MachineGroup| {
        let machines = sizes.get(&group.id).copied().unwrap_or_default();
        SizedMachineGroup { group, machines }
    };
    Ok(machine_group_list(tx)?.into_iter().map(sized).collect())
}

fn named(tx: &Tx<'_>, name: &str) -> Result<SizedMachineGroup> {
    let found = sized(tx)?.into_iter().find(|sized| sized.group.name == name);
    let id = || crate::caller::shown(name).into_owned();
    found.ok_or_else(|| Error::NotFound { entity: "MachineGroup", id: id() })
}

/// The id of a group that is not stored yet.
const NEW: i64 = i64::MIN;

/// The groups as they would be with the draft in place of the group `name`, by rank, and that group's id, which is
/// [`NEW`] when there is none.
fn planned(tx: &Tx<'_>, name: &str, draft: MachineGroupDraft) -> Result<(Vec<MachineGroup>, i64)> {
    let mut groups = machine_group_list(tx)?;
    let found = groups.iter().position(|group| group.name == name).map(|at| groups.remove(at));
    if groups.iter().any(|group| group.name == draft.name) {
        return Err(Error::AlreadyExists(format!("a machine group named {:?} exists", draft.name)));
    }
    if let Some(policy) = &draft.policy
        && policy_digest(tx, policy)?.is_none()
    {
        return Err(Error::InvalidInput(format!("there is no policy {policy:?}")));
    }
    if found.is_none() && groups.len() >= GROUPS_MAX {
        return Err(Error::InvalidInput(format!("at most {GROUPS_MAX} machine groups are possible")));
    }
    let old_rank = found.as_ref().and_then(|group| group.rank);
    let mut group = MachineGroup {
        id: found.as_ref().map_or(NEW, |group| group.id),
        name: draft.name,
        description: draft.description,
        rank: None,
        rule: draft.rule,
        user_groups: draft.user_groups,
        policy: draft.policy,
    };
    let id = group.id;
    if group.is_ungrouped() {
        if group.name != name || !group.rule.is_empty() || draft.rank.is_some() {
            return Err(Error::Disallowed(format!(
                "the group {name:?} is built in: it has no rule and no rank, and keeps its name"
            )));
        }
        groups.push(group);
    } else {
        // The ranked come first, so that a place in the list is a rank less one.
        let ranked = groups.iter().filter(|group| group.rank.is_some()).count();
        let wanted = draft.rank.or(old_rank).and_then(|rank| usize::try_from(rank).ok());
        let place = wanted.map_or(ranked, |rank| rank.saturating_sub(1).min(ranked));
        group.rank = Some(0);
        groups.insert(place, group);
        for (group, rank) in groups.iter_mut().filter(|group| !group.is_ungrouped()).zip(1..) {
            group.rank = Some(rank);
        }
    }
    Ok((groups, id))
}

fn save(tx: &Tx<'_>, actor: &str, name: &str, draft: MachineGroupDraft) -> Result<SizedMachineGroup> {
    let before = machine_group_list(tx)?;
    let (mut groups, id) = planned(tx, name, draft)?;
    if groups == before {
        return named(tx, name);
    }
    let planned = groups.iter_mut().find(|group| group.id == id);
    let planned =
        planned.ok_or_else(|| Error::Internal(StoreError::Damaged("a group is gone".to_owned())))?;
    if id == NEW {
        // Ranks are put in force together.
        planned.id = machine_group_create(tx, &MachineGroup { rank: None, ..planned.clone() })?;
    } else {
        machine_group_update(tx, planned)?;
    }
    let saved = planned.clone();
    ranks_set(tx, &groups)?;
    let moved = regroup(tx, &groups)?;
    let condition = |c: &Condition| format!("{} {} {:?}", c.property.name(), c.operator.name(), c.value);
    let rule: Vec<_> = saved.rule.iter().map(condition).collect();
    let detail = format!(
        "name {:?}, rank {:?}, rule [{}], user groups {:?}, policy {:?}, {moved} machines moved",
        saved.name,
        saved.rank,
        rule.join("; "),
        saved.user_groups,
        saved.policy
    );
    audit::record(tx, now(), actor, "machine_group_save", name, detail)?;
    named(tx, &saved.name)
}

fn ranks_set(tx: &Tx<'_>, groups: &[MachineGroup]) -> Result<()> {
    let ranked = groups.iter().filter(|group| !group.is_ungrouped());
    let ranks: Vec<_> = ranked.zip(1..).map(|(group, rank)| (group.id, rank)).collect();
    Ok(machine_group_ranks_set(tx, &ranks)?)
}

/// Puts every machine into its group; how many moved.
fn regroup(tx: &Tx<'_>, groups: &[MachineGroup]) -> Result<usize> {
    let mut moved = 0;
    let grouping = Grouping::new(groups);
    each_batch(tx, |batch| {
        let moving: Vec<_> = batch
            .iter()
            .map(|facts| (facts.id, grouping.group_of(&rule_facts(facts)), facts.group))
            .filter(|(_, group, old)| group != old)
            .map(|(machine, group, _)| (machine, group))
            .collect();
        moved += moving.len();
        Ok(machine_group_assign(tx, &moving)?)
    })?;
    Ok(moved)
}

fn preview(
    tx: &Tx<'_>,
    name: &str,
    draft: MachineGroupDraft,
    access: &MachineAccess,
) -> Result<MachineGroupPreview> {
    let (groups, id) = planned(tx, name, draft)?;
    let mut preview = MachineGroupPreview::default();
    let grouping = Grouping::new(&groups);
    each_batch(tx, |batch| {
        for facts in batch {
            let (is_in, was_in) = (grouping.group_of(&rule_facts(facts)) == id, facts.group == id);
            preview.machines += u64::from(is_in);
            preview.joining += u64::from(is_in && !was_in);
            preview.leaving += u64::from(was_in && !is_in);
            if is_in && preview.examples.len() < PREVIEW_MACHINES_MAX && access.admits(facts.group) {
                preview.examples.push((facts.id, facts.computer_dns_name.clone()));
            }
        }
        Ok(())
    })?;
    Ok(preview)
}

fn each_batch(tx: &Tx<'_>, mut work: impl FnMut(&[MachineFacts]) -> Result<()>) -> Result<()> {
    let mut after = None;
    loop {
        let batch = machine_facts(tx, after, FACTS_BATCH)?;
        let Some(last) = batch.last() else { return Ok(()) };
        after = Some(last.id);
        work(&batch)?;
    }
}

fn rule_facts(facts: &MachineFacts) -> RuleFacts<'_> {
    RuleFacts {
        computer_dns_name: &facts.computer_dns_name,
        os_platform: &facts.os_platform,
        tags: &facts.tags,
    }
}
