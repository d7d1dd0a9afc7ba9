//! `cargo xtask openapi`: writes the API document into the repository. That it is up to date is a test of `server`.

use std::fs;

use anyhow::{Context as _, Result};

use crate::command::{self, cargo};
use crate::programs::workspace;

/// Builds the server, and writes what it prints.
pub(crate) fn run() -> Result<()> {
    let mut print = cargo();
    print.current_dir(workspace()).args([
        "run",
        "--quiet",
        "--locked",
        "--package",
        "server",
        "--",
        "openapi",
    ]);
    let document = command::output(&mut print)?;
    let file = workspace().join("docs/openapi.json");
    fs::write(&file, document).with_context(|| file.display().to_string())?;
    println!("Wrote {}", file.display());
    Ok(())
}
