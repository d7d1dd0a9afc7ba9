//! `inventory`: reads the packages once more, now, with a progress bar.

use std::io::IsTerminal as _;
use std::sync::atomic::AtomicBool;

use anyhow::Result;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;

use super::{print, print_json};
use crate::arguments::Output;
use crate::config::Config;
use crate::inventory::{Outcome, refresh};

/// Scans, gives the baseline to the gate, and says what was found.
///
/// # Errors
/// When the packages cannot be read, or the gate does not take the baseline.
pub(super) fn inventory(config: &Config, output: Output) -> Result<()> {
    let bar = ProgressBar::new(0);
    if !std::io::stderr().is_terminal() {
        bar.set_draw_target(ProgressDrawTarget::hidden());
    }
    let style = "{bar:40} {human_pos}/{human_len} files, {elapsed}, about {eta} left";
    bar.set_style(ProgressStyle::with_template(style)?);
    let result = refresh(
        config,
        &mut |progress| {
            bar.set_length(progress.files_total);
            bar.set_position(progress.files_done);
        },
        &AtomicBool::new(false),
    );
    bar.finish_and_clear();
    let Outcome { report, baseline, was_held } = result?;
    match output {
        Output::Json => print_json(&json!({
            "packages": report.packages,
            "unfinished_packages": report.unfinished_packages,
            "files": report.files,
            "hashed": report.hashed,
            "bytes_hashed": report.bytes_hashed,
            "vouched": report.vouched,
            "modified": report.modified,
            "modified_executables": paths(&report.modified_executables),
            "unreadable": report.unreadable,
            "missing": report.missing,
            "weak": report.weak,
            "malformed": report.malformed,
            "unsupported": paths(&report.unsupported),
            "started_over": report.started_over,
            "baseline": baseline.to_string(),
            "baseline_was_held": was_held,
        })),
        Output::Text => {
            let mut text = format!(
                "packages    {}\nfiles       {}, {} of them read\nvouched     {}\nmodified    {}\nunreadable  {}\n\
                 missing     {}\nbaseline    {baseline}{}\n",
                report.packages,
                report.files,
                report.hashed,
                report.vouched,
                report.modified,
                report.unreadable,
                report.missing,
                if was_held {
                    ", which the gate held already"
                } else {
                    ", which the gate holds from here on"
                },
            );
            if !report.modified_executables.is_empty() {
                text.push_str(
                    "Programs that are not what their packages shipped, and are refused while restricted:\n",
                );
                for path in paths(&report.modified_executables) {
                    text.push_str(&format!("  {path}\n"));
                }
            }
            if report.weak > 0 {
                text.push_str(&format!(
                    "Refused while restricted, because rpm has no SHA-256 of them: {} files\n",
                    report.weak
                ));
            }
            for path in paths(&report.unsupported) {
                text.push_str(&format!("Not read, because its format is not known: {path}\n"));
            }
            print(&text)
        }
    }
}

/// The paths, fit for a terminal.
fn paths(paths: &[std::path::PathBuf]) -> Vec<String> {
    paths.iter().map(|path| path.to_string_lossy().escape_debug().to_string()).collect()
}
