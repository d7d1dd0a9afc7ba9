//! `preview`: what a restriction would refuse now.

use std::io::IsTerminal as _;
use std::time::Duration;

use anyhow::{Result, bail};
use domain::time::Timestamp;
use gate_protocol::{ImpactPreview, Reply, Request};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::{print, print_json};
use crate::arguments::Output;
use crate::config::Config;
use crate::gate::Gate;

/// How often the gate is asked how far it is.
const ASK_EVERY: Duration = Duration::from_millis(100);

/// Has the gate judge what runs, and shows what would be refused.
///
/// # Errors
/// When the gate does not answer, or holds no such policy.
pub(super) fn preview(config: &Config, policy: Option<String>, output: Output) -> Result<()> {
    let bar = ProgressBar::new(0);
    if !std::io::stderr().is_terminal() {
        bar.set_draw_target(ProgressDrawTarget::hidden());
    }
    bar.set_style(ProgressStyle::with_template("{bar:40} {human_pos}/{human_len} files, {elapsed}")?);
    let mut gate = Gate::connect(&config.gate_socket)?;
    let mut request = Request::Preview { policy, age_seconds_max: 0 };
    let begun = std::time::Instant::now();
    let preview = loop {
        let reply = gate.ask(&request)?;
        if let Reply::Preview(preview) = reply {
            break preview;
        }
        let Reply::PreviewUnderway { files_done, files_total } = reply else {
            bail!("the gate answered {reply:?}")
        };
        bar.set_length(files_total);
        bar.set_position(files_done);
        std::thread::sleep(ASK_EVERY);
        // What was begun for this command is young enough for it.
        if let Request::Preview { age_seconds_max, .. } = &mut request {
            *age_seconds_max = begun.elapsed().as_secs() + 1;
        }
    };
    bar.finish_and_clear();
    match output {
        Output::Json => print_json(&preview),
        Output::Text => print(&text(&preview)),
    }
}

fn text(preview: &ImpactPreview) -> String {
    let policy = preview.policy.as_deref().unwrap_or("none: what packages shipped");
    let covers = match preview.history_days {
        Some(days) => format!("what runs, and what ran in the last {days} days"),
        None => "what runs, and nothing else: audit is off".to_owned(),
    };
    let cut = if preview.is_cut { "; there was more than is looked at" } else { "" };
    let mut text = format!(
        "policy      {policy}\ncovers      {covers}\nlooked at   {} files of {} processes{cut}\nrefused     {}\n",
        preview.files, preview.processes, preview.refused_files
    );
    for file in &preview.refused {
        let kind = if file.mapped_only { "mapped" } else { "program" };
        let pids: Vec<_> = file.pids.iter().map(ToString::to_string).collect();
        text.push_str(&format!("  {}  {} ({kind})\n", file.path, file.cause));
        let sha256 = file.sha256.as_deref().unwrap_or("unknown");
        let more = if file.processes > file.pids.len() as u64 { " ..." } else { "" };
        text.push_str(&format!("    sha256 {sha256}\n"));
        if !pids.is_empty() {
            text.push_str(&format!("    runs as {}{more}\n", pids.join(" ")));
        } else {
            text.push_str(&format!(
                "    last seen {}, {} times\n",
                Timestamp::from_ticks(file.last_seen),
                file.executions
            ));
        }
    }
    let hidden = preview.refused_files.saturating_sub(preview.refused.len() as u64);
    if hidden > 0 {
        text.push_str(&format!("  and {hidden} more\n"));
    }
    text
}
