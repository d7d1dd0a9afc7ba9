//! What the guest tells the host: JSON, one object a line, on a serial port of its own.

use std::fs::File;
use std::io::Write as _;

use anyhow::{Context as _, Result};
use serde::Serialize;

use crate::row::{Id, Tier, Who};

/// The second serial port.
const PORT: &str = "/dev/ttyS1";

/// One line.
#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Line<'a> {
    /// A row begins.
    Begin {
        /// Which.
        row: Id,
    },
    /// What came of a row for one user.
    Result {
        /// Which row.
        row: Id,
        /// On which tier.
        tier: Tier,
        /// By whom.
        r#as: Who,
        /// What was to come, in words.
        expected: String,
        /// What came, in the same words when it is as expected.
        got: String,
        /// Whether all of it is as expected.
        holds: bool,
        /// Each try that is not, and errors.
        deviations: Vec<String>,
        /// How many tries.
        tries: usize,
        /// How long the row took, for both users.
        milliseconds: u128,
    },
    /// All rows were run.
    Done,
    /// The guest is to be booted again, and goes on then.
    Again {
        /// How.
        boot: &'a Boot,
    },
    /// It cannot go on.
    Failed {
        /// Why.
        reason: String,
    },
}

/// How the guest is to be booted the next time.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Boot {
    /// Without a network card.
    pub no_network: bool,
    /// Another list of security modules than the tier's.
    pub lsm: Option<String>,
}

/// Writes lines to the host.
pub struct Report(File);

impl Report {
    /// Opens the port.
    ///
    /// # Errors
    /// Where there is none.
    pub fn open() -> Result<Self> {
        Ok(Self(File::options().write(true).open(PORT).context(PORT)?))
    }

    /// Writes a line.
    ///
    /// # Errors
    /// From the port.
    pub fn tell(&mut self, line: &Line<'_>) -> Result<()> {
        let mut text = serde_json::to_string(line)?;
        text.push('\n');
        self.0.write_all(text.as_bytes()).context(PORT)
    }
}
