//! Machines: enrolled, heard of, looked up.

use std::net::IpAddr;

use domain::machine::{Capabilities, Machine, MachineId, System};
use domain::permission::Requirement;
use domain::restriction::Reported;
use domain::time::Timestamp;
use orders::PublicKey;
use store::Tx;
use store::enrollment_token::{enrollment_token_fetch, enrollment_token_spend};
use store::list::{Page, machine_list};
use store::machine::{
    machine_connected, machine_enroll, machine_fetch, machine_ids_by_name, machine_reported, machines_seen,
};

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

impl ControlPlane {
    /// The machine with this id or computer name.
    ///
    /// # Errors
    /// [`Error::Forbidden`], [`Error::NotFound`], [`Error::InvalidInput`] when several have the name; from the store.
    pub async fn machine_fetch(&self, caller: &Caller, target: &str) -> Result<Machine> {
        caller.require(Requirement::READ)?;
        let target = target.to_owned();
        self.0.store.read(move |tx| resolve(tx, &target)).await
    }

    /// The machines that a query selects.
    ///
    /// # Errors
    /// [`Error::Forbidden`]; from the store.
    pub async fn machine_list(&self, caller: &Caller, query: odata::Query) -> Result<Page<Machine>> {
        caller.require(Requirement::READ)?;
        self.0.store.read_list(move |tx| Ok(machine_list(tx, &query, now())?)).await
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
                report(tx, &machine, reported)
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

/// The machine that a caller means by an id or a computer name.
pub(crate) fn resolve(tx: &Tx<'_>, target: &str) -> Result<Machine> {
    let not_found =
        || Error::NotFound { entity: "Machine", id: target.chars().take(NAME_BYTES_MAX).collect() };
    if let Ok(id) = target.parse::<MachineId>() {
        return machine_fetch(tx, id)?.ok_or_else(not_found);
    }
    let ids = machine_ids_by_name(tx, &target.to_ascii_lowercase())?;
    match ids.as_slice() {
        [] => Err(not_found()),
        [id] => machine_fetch(tx, *id)?.ok_or_else(not_found),
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
