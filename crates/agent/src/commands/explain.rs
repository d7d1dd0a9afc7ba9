//! `explain`: may this program run while the machine is restricted, and why.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use gate_protocol::{Reply, Request};
use serde::Serialize;

use super::{print, print_json};
use crate::arguments::Output;
use crate::config::Config;
use crate::gate::Gate;
use crate::inventory;

#[derive(Serialize)]
struct Explained {
    path: String,
    /// None when the gate did not say.
    allowed: Option<bool>,
    cause: Option<String>,
    rule: Option<String>,
    sha256: Option<String>,
    message: String,
    package: Package,
}

/// What the package databases say.
#[derive(Serialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
enum Package {
    Shipped {
        name: String,
        manager: &'static str,
    },
    Modified {
        name: String,
        manager: &'static str,
        sha256: String,
    },
    /// Listed with a digest that proves nothing.
    Unproven {
        name: String,
        manager: &'static str,
    },
    NotPackaged,
    Unreadable {
        reason: String,
    },
}

/// Joins the gate's verdict with what the package databases say.
///
/// # Errors
/// When the path cannot be named, or neither has anything to say.
pub(super) fn explain(config: &Config, path: &Path, output: Output) -> Result<ExitCode> {
    let path = std::path::absolute(path)?;
    let asked = ask_gate(config, &path);
    let package = package(config, &path)?;
    let message = match &asked {
        Ok(explanation) => explanation.message.clone(),
        Err(error) => format!("the gate does not say: {error:#}; run this as root"),
    };
    let is_answered = asked.is_ok();
    let asked = asked.ok();
    let explained = Explained {
        path: path.to_string_lossy().escape_debug().to_string(),
        allowed: asked.as_ref().map(|explanation| explanation.allowed),
        cause: asked.as_ref().map(|explanation| explanation.cause.clone()),
        rule: asked.as_ref().and_then(|explanation| explanation.rule.clone()),
        sha256: asked.and_then(|explanation| explanation.sha256),
        message,
        package,
    };
    match output {
        Output::Json => print_json(&explained)?,
        Output::Text => print(&explained.text())?,
    }
    Ok(if is_answered { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn ask_gate(config: &Config, path: &Path) -> Result<gate_protocol::Explanation> {
    let path = path.to_str().context("its protocol has no word for a path that is not UTF-8")?.to_owned();
    let reply = Gate::connect(&config.gate_socket)?.ask(&Request::Explain { path })?;
    let Reply::Explanation(explanation) = reply else { bail!("it answered {reply:?}") };
    Ok(explanation)
}

fn package(config: &Config, path: &Path) -> Result<Package> {
    Ok(match inventory::inventory(config).explain(path)? {
        trust::Explanation::Packaged { manager, package: name, content, sha256 } => {
            let manager = manager.name();
            match content {
                trust::Comparison::Same => Package::Shipped { name, manager },
                trust::Comparison::Other => Package::Modified { name, manager, sha256: sha256.to_string() },
                trust::Comparison::Unknown => Package::Unproven { name, manager },
            }
        }
        trust::Explanation::NotPackaged => Package::NotPackaged,
        trust::Explanation::Unreadable(reason) => Package::Unreadable { reason },
    })
}

impl Explained {
    fn text(&self) -> String {
        let verdict = match self.allowed {
            Some(true) => "runs while this machine is restricted",
            Some(false) => "is refused while this machine is restricted",
            None => "the verdict is not known",
        };
        let package = match &self.package {
            Package::Shipped { name, manager } => {
                format!("{name} ({manager}) shipped exactly this file here")
            }
            Package::Modified { name, manager, sha256: _ } => {
                format!("{name} ({manager}) shipped another content here")
            }
            Package::Unproven { name, manager } => {
                format!("{name} ({manager}) lists a file here, and has no SHA-256 of it")
            }
            Package::NotPackaged => "no installed package shipped a file here".to_owned(),
            Package::Unreadable { reason } => format!("cannot be compared: {reason}"),
        };
        let mut text = format!("{}: {verdict}\n", self.path);
        let cause = self.cause.as_ref().map(|cause| format!(" ({cause})")).unwrap_or_default();
        text.push_str(&format!("  why      {}{cause}\n", self.message));
        text.push_str(&format!("  package  {package}\n"));
        if let Some(sha256) = &self.sha256 {
            text.push_str(&format!("  sha256   {sha256}\n"));
        }
        text
    }
}
