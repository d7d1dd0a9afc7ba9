//! Questions before what cannot be taken back by one more call.

use std::io::IsTerminal as _;

use anyhow::Result;

use crate::error::UsageError;
use crate::text::printable;

/// Refuses to go on without a terminal on which to ask, unless `--yes` was given.
///
/// # Errors
/// A [`UsageError`].
pub(crate) fn require_answerable(yes: bool, what: &str) -> Result<()> {
    if yes || is_answerable() {
        return Ok(());
    }
    Err(UsageError(format!("{what} asks first, and there is no terminal to ask on: give --yes")).into())
}

/// Asks on the terminal.
///
/// # Errors
/// A [`UsageError`] unless the answer is yes.
pub(crate) fn ask(question: &str) -> Result<()> {
    let terminal = console::Term::stderr();
    terminal.write_str(&format!("{} [y/N] ", printable(question)))?;
    let answer = if is_answerable() { terminal.read_line()? } else { String::new() };
    match answer.trim().to_lowercase().as_str() {
        "y" | "yes" => Ok(()),
        _ => Err(UsageError("not confirmed: nothing is done".to_owned()).into()),
    }
}

fn is_answerable() -> bool {
    std::io::stdin().is_terminal() && std::io::stderr().is_terminal()
}
