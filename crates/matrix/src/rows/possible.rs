//! What must stay possible on a restricted machine.

use anyhow::Result;

use crate::lab::{Lab, take_marker};
use crate::row::{BOTH, Expected, Got, Row, Stage};
use crate::tries::Try;

/// The rows.
pub(super) const ROWS: &[Row] = &[Row::possible("lift", "what was refused runs again", Stage::Fast, lift)];

/// What was refused runs again.
fn lift(lab: &mut Lab) -> Result<()> {
    let path = lab.disk()?.join("payload");
    lab.payload("static", &path)?;
    let payload = Try::exec(&path);
    lab.check(&[Try::exec(&path)])?;
    for who in BOTH {
        payload.run_now(who)?;
        let got = take_marker().map(|ran| if ran { Got::Ran } else { Got::DeniedUnseen });
        lab.record(who, "after the lift", Expected::Allowed, got);
    }
    Ok(())
}
