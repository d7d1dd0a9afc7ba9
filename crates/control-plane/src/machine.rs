//! Machines: enrolled, heard of, looked up.

use std::net::IpAddr;
use std::time::Duration;

use domain::machine::{Capabilities, Machine, MachineId, System};
use domain::machine_group::MachineAccess;
use domain::permission::Requirement;
use domain::restriction::Reported;
use domain::time::Timestamp;
use orders::PublicKey;
use store::Tx;
use store::enrollment_token::{enrollment_token_fetch, enrollment_token_spend};
use store::list::{Page, machine_list};
use store::machine::{
    machine_connected, machine_enroll, machine_fetch, machine_ids_by_name, machine_ips_forget,
    machine_reported, machine_tag_add, machine_tag_remove, machines_by_ip, machines_seen,
};
use store::machine_group::machine_group_list;

use crate::caller::shown;
use crate::machine_group::machine_regroup;
use crate::{Caller, ControlPlane, Error, Result, audit, now, secret};

/// The longest computer name, in bytes (RFC 1035).
const NAME_BYTES_MAX: usize = 255;

/// The restriction as a machine's gate reports it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReportedState {
    /// The enrollment that the gate is bound to.
    pub incarnation: u64,
    /// The last accepted generation.
    pub generation: u64,
    /// Whether the restriction is in force.
    pub restricted: bool,
}

/// The longest tag, in characters.
const TAG_CHARS_MAX: usize = 200;
/// The most tags of a machine.
const TAGS_MAX: usize = 100;
/// How long it is remembered which machine had an address: the vendor's thirty days.
const ADDRESSES_KEPT_FOR: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// What is to happen to a tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TagChange {
    /// The machine gets it, unless it has it.
    Add,
    /// The machine loses it, if it has it.
    Remove,
}

impl ControlPlane {
    /// The machine with this id or computer name.
    ///
    /// # Errors
    /// [`Error::Forbidden`], [`Error::NotFound`], [`Error::InvalidInput`] when several have the name; from the store.
    pub async fn machine_fetch(&self, caller: &Caller, target: &str) -> Result<Machine> {
        caller.require(Requirement::READ)?;
        let (target, access) = (target.to_owned(), caller.machines.clone());
        self.0.store.read(move |tx| resolve(tx, &target, &access)).await
    }

    /// The machines that a query selects.
    ///
    /// # Errors
    /// [`Error::Forbidden`]; from the store.
    pub async fn machine_list(&self, caller: &Caller, query: odata::Query) -> Result<Page<Machine>> {
        caller.require(Requirement::READ)?;
        let access = caller.machines.clone();
        self.0.store.read_list(move |tx| Ok(machine_list(tx, &query, &access, now())?)).await
    }

    /// The machines that had an address within 15 minutes before or after a time of the last thirty days.
    ///
    /// # Errors
    /// [`Error::Forbidden`], [`Error::InvalidInput`] for another time; from the store.
    pub async fn machine_list_by_ip(
        &self,
        caller: &Caller,
        ip: IpAddr,
        at: Timestamp,
    ) -> Result<Vec<Machine>> {
        caller.require(Requirement::READ)?;
        if at < now().minus(ADDRESSES_KEPT_FOR) {
            return Err(Error::InvalidInput("timestamp is more than 30 days ago".to_owned()));
        }
        let access = caller.machines.clone();
        self.0.store.read_list(move |tx| Ok(machines_by_ip(tx, ip, at, &access)?)).await
    }

    /// Gives a machine (id or name) a tag, or takes it. Its group changes with it when a rule says so.
    ///
    /// # Errors
    /// [`Error::Forbidden`], [`Error::NotFound`], [`Error::InvalidInput`]; from the store.
    pub async fn machine_tag(
        &self,
        caller: &Caller,
        target: &str,
        tag: &str,
        change: TagChange,
    ) -> Result<Machine> {
        caller.require(Requirement::WRITE)?;
        if tag.trim().is_empty() || tag.chars().count() > TAG_CHARS_MAX || tag.chars().any(char::is_control) {
            return Err(Error::InvalidInput(format!("a tag has 1 to {TAG_CHARS_MAX} printable characters")));
        }
        let tag = tag.trim().to_owned();
        let (actor, target, access) = (caller.name().to_owned(), target.to_owned(), caller.machines.clone());
        self.0
            .store
            .write(move |tx| {
                let machine = resolve(tx, &target, &access)?;
                let (changed, operation) = match change {
                    TagChange::Add => {
                        if machine.tags.len() >= TAGS_MAX && !machine.tags.contains(&tag) {
                            let message = format!("a machine has at most {TAGS_MAX} tags");
                            return Err(Error::InvalidInput(message));
                        }
                        (machine_tag_add(tx, machine.id, &tag)?, "machine_tag_add")
                    }
                    TagChange::Remove => (machine_tag_remove(tx, machine.id, &tag)?, "machine_tag_remove"),
                };
                if !changed {
                    return Ok(machine);
                }
                audit::record(tx, now(), &actor, operation, machine.id, format!("{tag:?}"))?;
                regrouped(tx, machine.id, &actor)
            })
            .await
    }

    /// Forgets which machine had which address long ago.
    pub fn machine_addresses_forget(&self) {
        self.0.store.write_behind(|tx| machine_ips_forget(tx, now().minus(ADDRESSES_KEPT_FOR)).map(drop));
    }

    /// Enrolls a machine, or the same machine again; its incarnation. Spends one use of the token.
    ///
    /// # Errors
    /// [`Error::Unauthenticated`] for a token that is unknown, spent, expired or revoked; from the store.
    pub async fn machine_enroll(
        &self,
        token_secret: &str,
        machine: MachineId,
        gate_key: PublicKey,
        name: &str,
        remote: IpAddr,
    ) -> Result<u64> {
        let digest = secret::digest(token_secret);
        let name = clean_name(name);
        self.0
            .store
            .write(move |tx| {
                let at = now();
                let unusable = || {
                    Error::Unauthenticated(
                        "the enrollment token is unknown, spent, expired or revoked: make another one"
                            .to_owned(),
                    )
                };
                let token = enrollment_token_fetch(tx, &digest)?.filter(|token| token.is_usable(at));
                let token = token.ok_or_else(unusable)?;
                if !enrollment_token_spend(tx, token.id)? {
                    return Err(unusable());
                }
                let incarnation = machine_enroll(tx, machine, &gate_key.to_string(), &name, at)?;
                let detail = format!("name {name:?}, incarnation {incarnation}, from {remote}");
                let actor = format!("enrollment-token {}", token.id);
                audit::record(tx, at, &actor, "machine_enroll", machine, detail)?;
                regrouped(tx, machine, &actor)?;
                Ok(incarnation)
            })
            .await
    }

    /// Records what a machine said of itself when it connected.
    ///
    /// # Errors
    /// [`Error::NotFound`]; from the store.
    pub async fn machine_connected(
        &self,
        id: MachineId,
        mut system: System,
        capabilities: Capabilities,
        reported: ReportedState,
        remote: IpAddr,
    ) -> Result<()> {
        system.computer_dns_name = clean_name(&system.computer_dns_name);
        self.0
            .store
            .write(move |tx| {
                let machine = known(tx, id)?;
                machine_connected(tx, id, &system, &capabilities, remote, now())?;
                report(tx, &machine, reported)?;
                // Rules look at nothing else that a machine says of itself.
                let is_same = (&machine.system.computer_dns_name, &machine.system.os_platform)
                    == (&system.computer_dns_name, &system.os_platform);
                if !is_same {
                    regrouped(tx, id, &format!("machine {id}"))?;
                }
                Ok(())
            })
            .await
    }

    /// Records what a machine reports of its restriction. Writes only what changed.
    ///
    /// # Errors
    /// [`Error::NotFound`]; from the store.
    pub async fn machine_reported(&self, id: MachineId, reported: ReportedState) -> Result<()> {
        let known_already =
            self.0.store.read(move |tx| Ok::<_, Error>(!changes(&known(tx, id)?, reported))).await?;
        if known_already {
            return Ok(());
        }
        self.0.store.write(move |tx| report(tx, &known(tx, id)?, reported)).await
    }

    /// Records when machines were last heard, some time later.
    pub fn machines_seen(&self, seen: Vec<(MachineId, Timestamp)>) {
        self.0.store.write_behind(move |tx| machines_seen(tx, &seen));
    }
}

/// The machine that a caller means by an id or a computer name. One that it may not see is as unknown as one that is
/// not there.
pub(crate) fn resolve(tx: &Tx<'_>, target: &str, access: &MachineAccess) -> Result<Machine> {
    let not_found = || Error::NotFound { entity: "Machine", id: shown(target).into_owned() };
    let visible = |id| Ok::<_, Error>(machine_fetch(tx, id)?.filter(|machine| access.admits(machine.group)));
    if let Ok(id) = target.parse::<MachineId>() {
        return visible(id)?.ok_or_else(not_found);
    }
    let ids = machine_ids_by_name(tx, &target.to_ascii_lowercase(), access)?;
    match ids.as_slice() {
        [] => Err(not_found()),
        [id] => visible(*id)?.ok_or_else(not_found),
        several => {
            let shown: Vec<_> = several.iter().take(10).map(ToString::to_string).collect();
            let more = if several.len() > shown.len() { " and more" } else { "" };
            Err(Error::InvalidInput(format!(
                "several machines are named {target}, use an id: {}{more}",
                shown.join(", ")
            )))
        }
    }
}

/// The machine behind a connection.
pub(crate) fn known(tx: &Tx<'_>, id: MachineId) -> Result<Machine> {
    machine_fetch(tx, id)?.ok_or_else(|| Error::NotFound { entity: "Machine", id: id.to_string() })
}

/// The machine once it is in its group, by the rules as this transaction sees them.
fn regrouped(tx: &Tx<'_>, id: MachineId, actor: &str) -> Result<Machine> {
    let machine = known(tx, id)?;
    if !machine_regroup(tx, &machine_group_list(tx)?, &machine)? {
        return Ok(machine);
    }
    let moved = known(tx, id)?;
    let detail = format!("from {:?} to {:?}", machine.group_name, moved.group_name);
    audit::record(tx, now(), actor, "machine_regroup", id, detail)?;
    Ok(moved)
}

/// Writes a report that says something else than the last.
fn report(tx: &Tx<'_>, machine: &Machine, reported: ReportedState) -> Result<()> {
    if changes(machine, reported) {
        let generation = generation_of(machine, reported);
        machine_reported(tx, machine.id, state_of(reported), generation, now())?;
    }
    Ok(())
}

fn changes(machine: &Machine, reported: ReportedState) -> bool {
    let known = &machine.restriction;
    (known.reported, known.reported_generation) != (state_of(reported), generation_of(machine, reported))
}

/// Generations of another enrollment count for nothing, but what the machine is, it is.
fn generation_of(machine: &Machine, reported: ReportedState) -> u64 {
    if reported.incarnation == machine.incarnation { reported.generation } else { 0 }
}

fn state_of(reported: ReportedState) -> Reported {
    if reported.restricted { Reported::Restricted } else { Reported::Released }
}

/// A machine's name as it is stored and compared: what no DNS name holds becomes a dash. Machines are not trusted to
/// name themselves well.
fn clean_name(name: &str) -> String {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    let clean =
        name.chars().take(NAME_BYTES_MAX).map(|c| if allowed(c) { c.to_ascii_lowercase() } else { '-' });
    let clean: String = clean.collect();
    if clean.is_empty() { "unnamed".to_owned() } else { clean }
}

#[cfg(test)]
mod tests {
    use super::clean_name;

    #[test]
    fn hostile_names_become_plain() {
        for (name, clean) in [
            ("LAB-042.example", "lab-042.example"),
            ("a b\n<script>", "a-b--script-"),
            ("", "unnamed"),
            ("ü", "-"),
        ] {
            assert_eq!(clean_name(name), clean);
        }
        assert_eq!(clean_name(&"x".repeat(1000)).len(), 255);
    }
}
