//! Break-glass: codes that are shown to people, statements for machines to hold, and what was used of them.
//!
//! No code is stored: it is derived from the key that signs orders when it is shown. A code is shown once; showing again
//! makes the next one. A machine holds the verifiers of several ahead of time, so that this needs no link.

use std::time::Duration;

use domain::machine::{Machine, MachineId};
use domain::machine_action::{Cancellation, Kind, Phase};
use domain::permission::Requirement;
use domain::time::Timestamp;
use orders::{
    BREAK_GLASS_CODES, BreakGlassCode, BreakGlassStatement, BreakGlassUse, CodeNumber, PublicKey,
    VerifiedBreakGlassLog,
};
use store::break_glass::{
    BreakGlassRow, BreakGlassUseRow, break_glass_fetch, break_glass_lift, break_glass_save,
    break_glass_use_create, break_glass_used_serial,
};
use store::machine::machine_gate_key;
use store::machine_action::{machine_action_by_generation, machine_action_move, machine_action_open};
use store::{Tx, store_epoch_fetch};

use crate::machine::{known, resolve};
use crate::order::signed_text;
use crate::{Caller, ControlPlane, Error, Result, audit, now};

/// How long after it was shown a code counts on a machine that has a link. One without goes on taking it.
const SHOWN_FOR: Duration = Duration::from_secs(24 * 60 * 60);

/// A code as it is shown, this once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShownCode {
    /// The machine that takes it.
    pub machine: MachineId,
    /// Its name.
    pub computer_dns_name: String,
    /// The code.
    pub code: BreakGlassCode,
    /// Which of the machine's codes it is.
    pub serial: u64,
}

/// What a machine reports of break-glass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReportedBreakGlass {
    /// The first code of the statement that its gate holds; none when it holds none.
    pub held: Option<CodeNumber>,
    /// The gate's signed log of the codes that were used: the envelope's JSON text.
    pub log: Option<String>,
}

impl ControlPlane {
    /// Shows the next break-glass code of a machine (id or name). What was shown before counts until one after it was
    /// used, or a day after it was shown when the machine has a link.
    ///
    /// # Errors
    /// [`Error::Forbidden`], [`Error::NotFound`], [`Error::Disallowed`] when the machine is not known to hold a code
    /// that was not shown; from the store.
    pub async fn break_glass_code_show(&self, caller: &Caller, target: &str) -> Result<ShownCode> {
        caller.require(Requirement::BREAK_GLASS)?;
        self.0.limiter.admit(&self.0.store, "break_glass_code_show", caller)?;
        let control = self.clone();
        let (actor, target, access) = (caller.name().to_owned(), target.to_owned(), caller.machines.clone());
        self.0
            .store
            .write(move |tx| {
                let machine = resolve(tx, &target, &access)?;
                let id = machine.id;
                let held = break_glass_fetch(tx, id)?.filter(|held| held.incarnation == machine.incarnation);
                let Some(mut held) = held else {
                    return Err(Error::Disallowed(format!(
                        "machine {id} is not known to hold break-glass codes: it gets them when it connects, from a \
                         server and with an agent that know of them"
                    )));
                };
                let used = break_glass_used_serial(tx, id, held.store_epoch, held.incarnation)?;
                let serial = next_serial(&held, used);
                if serial >= held.first_serial.saturating_add(BREAK_GLASS_CODES as u64) {
                    return Err(Error::Disallowed(format!(
                        "every break-glass code that machine {id} holds was shown or used: it gets others when it is \
                         connected, a day after the last was shown"
                    )));
                }
                let number =
                    CodeNumber { store_epoch: held.store_epoch, incarnation: held.incarnation, serial };
                let at = now();
                (held.shown_serial, held.shown_at) = (serial, Some(at));
                break_glass_save(tx, id, &held)?;
                audit::record(tx, at, &actor, "break_glass_code_show", id, format!("code {serial}"))?;
                Ok(ShownCode {
                    machine: id,
                    computer_dns_name: machine.system.computer_dns_name,
                    code: BreakGlassCode::derive(&control.0.order_key, id, number),
                    serial,
                })
            })
            .await
    }

    /// Takes up what a machine reports of break-glass: uses are recorded, and what they lifted is no longer wanted. The
    /// signed statement that the machine is to hold, when it is another than it holds.
    ///
    /// # Errors
    /// [`Error::NotFound`]; from the store.
    pub async fn break_glass_reported(
        &self,
        id: MachineId,
        reported: ReportedBreakGlass,
    ) -> Result<Option<String>> {
        let control = self.clone();
        let (statement, superseded) = self
            .0
            .store
            .write(move |tx| {
                let mut superseded = None;
                if let Some(log) = &reported.log {
                    for used in believed(tx, id, log)? {
                        superseded = superseded.or(record(tx, id, &used)?);
                    }
                }
                let machine = known(tx, id)?;
                let (store_epoch, incarnation) = (store_epoch_fetch(tx)?, machine.incarnation);
                let is_current = |epoch, of| (epoch, of) == (store_epoch, incarnation);
                let held = reported.held.filter(|held| is_current(held.store_epoch, held.incarnation));
                let before = break_glass_fetch(tx, id)?;
                let mut row = before.filter(|row| is_current(row.store_epoch, row.incarnation));
                if let Some(held) = held
                    && row.is_none_or(|row| row.first_serial != held.serial)
                {
                    let new = BreakGlassRow {
                        store_epoch,
                        incarnation,
                        first_serial: held.serial,
                        shown_serial: row.map_or(0, |row| row.shown_serial),
                        shown_at: row.and_then(|row| row.shown_at),
                    };
                    break_glass_save(tx, id, &new)?;
                    row = Some(new);
                }
                let used = break_glass_used_serial(tx, id, store_epoch, incarnation)?;
                let wanted = wanted_serial(row.as_ref(), used, now());
                if held.is_some_and(|held| held.serial >= wanted) {
                    return Ok::<_, Error>((None, superseded));
                }
                let first = CodeNumber { store_epoch, incarnation, serial: wanted };
                let key = &control.0.order_key;
                let statement = BreakGlassStatement::new(key, id, first, now()).sign(key);
                Ok((Some(signed_text(&statement)), superseded))
            })
            .await?;
        if let Some(superseded) = superseded {
            self.0.watch.ended(superseded);
        }
        Ok(statement)
    }
}

/// The serial of the code that is shown next.
fn next_serial(held: &BreakGlassRow, used: u64) -> u64 {
    held.first_serial.max(held.shown_serial.saturating_add(1)).max(used.saturating_add(1))
}

/// The serial from which on the machine is to hold codes: none that was used, and none that was shown too long ago.
fn wanted_serial(held: Option<&BreakGlassRow>, used: u64, at: Timestamp) -> u64 {
    let kept = held.map_or(1, |held| {
        let is_over = held.shown_at.is_some_and(|shown_at| at.since(shown_at) >= SHOWN_FOR);
        if is_over { held.first_serial.max(held.shown_serial.saturating_add(1)) } else { held.first_serial }
    });
    kept.max(used.saturating_add(1))
}

/// The uses in a log, when the machine's own gate signed it.
fn believed(tx: &Tx<'_>, id: MachineId, log: &str) -> Result<Vec<BreakGlassUse>> {
    let gate_key = machine_gate_key(tx, id)?.and_then(|text| text.parse::<PublicKey>().ok());
    let verified = gate_key.and_then(|key| VerifiedBreakGlassLog::verify(log.as_bytes(), key, id).ok());
    // One of a gate whose key was lost since: there is nobody to ask, and orders must get through all the same.
    Ok(verified.map(|verified| verified.log().uses.clone()).unwrap_or_default())
}

/// Records one use, and gives up what it lifted: the order of the restriction is not to bring it back, nor one that was
/// made before it. An order that was made after it stands. The action that is given up.
fn record(
    tx: &Tx<'_>,
    id: MachineId,
    used: &BreakGlassUse,
) -> Result<Option<domain::machine_action::MachineActionId>> {
    let row = BreakGlassUseRow {
        store_epoch: used.code.store_epoch,
        incarnation: used.code.incarnation,
        serial: used.code.serial,
        generation: used.generation,
        used_at: used.at,
    };
    let at = now();
    if !break_glass_use_create(tx, id, &row, at)? {
        return Ok(None);
    }
    let machine = known(tx, id)?;
    let actor = format!("machine {id}");
    let stands = is_newer(tx, &machine, used)?;
    let and = if stands { "; a restriction that was ordered later stands" } else { "" };
    let detail = format!(
        "code {} lifted the restriction of generation {} at {}{and}",
        used.code.serial, used.generation, used.at
    );
    audit::record(tx, at, &actor, "break_glass_use", id, detail)?;
    if stands {
        return Ok(None);
    }
    break_glass_lift(tx, id, used.at)?;
    let open = machine_action_open(tx, id)?;
    let Some(open) =
        open.filter(|open| open.kind == Kind::Restrict && open.fence.generation > used.generation)
    else {
        return Ok(None);
    };
    let comment = format!("the restriction was lifted by break-glass on the machine at {}", used.at);
    let cancellation = Cancellation { requestor: actor, comment, at };
    machine_action_move(tx, &open, Phase::Superseded, None, Some(&cancellation), at)?;
    Ok(Some(open.id))
}

/// Whether what is wanted of the machine is a restriction that was ordered after a code was used.
fn is_newer(tx: &Tx<'_>, machine: &Machine, used: &BreakGlassUse) -> Result<bool> {
    let wanted = machine_action_by_generation(tx, machine.id, machine.restriction.wanted_generation)?;
    Ok(wanted.is_some_and(|wanted| {
        wanted.kind == Kind::Restrict
            && wanted.fence.generation > used.generation
            && wanted.created_at > used.at
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(first_serial: u64, shown_serial: u64, shown_at: Option<i64>) -> BreakGlassRow {
        let shown_at = shown_at.map(Timestamp::from_unix_seconds);
        BreakGlassRow { store_epoch: 1, incarnation: 1, first_serial, shown_serial, shown_at }
    }

    #[test]
    fn a_machine_is_to_hold_what_was_neither_used_nor_shown_long_ago() {
        const DAY: i64 = 24 * 60 * 60;
        let at = Timestamp::from_unix_seconds(10 * DAY);
        for (what, held, used, wanted) in [
            ("a new machine", None, 0, 1),
            ("nothing happened", Some(held(1, 0, None)), 0, 1),
            ("shown a moment ago", Some(held(1, 2, Some(10 * DAY - 1))), 0, 1),
            ("shown a day ago", Some(held(1, 2, Some(9 * DAY))), 0, 3),
            ("used", Some(held(1, 2, Some(10 * DAY))), 2, 3),
            ("used without being shown here", Some(held(1, 0, None)), 5, 6),
            ("taken up", Some(held(3, 2, Some(9 * DAY))), 2, 3),
            ("the codes of a machine that lost them", None, 4, 5),
        ] {
            assert_eq!(wanted_serial(held.as_ref(), used, at), wanted, "{what}");
        }
    }

    #[test]
    fn every_showing_is_of_another_code() {
        assert_eq!(next_serial(&held(1, 0, None), 0), 1);
        assert_eq!(next_serial(&held(1, 1, None), 0), 2);
        assert_eq!(next_serial(&held(1, 1, None), 4), 5);
        assert_eq!(next_serial(&held(7, 1, None), 0), 7);
    }
}
