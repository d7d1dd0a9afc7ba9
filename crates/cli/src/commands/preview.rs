//! `cordon machine preview`: what a restriction of a machine would refuse now.

use std::time::{Duration, Instant};

use anyhow::Result;
use api_types::impact_preview::{ImpactPreview, Preview, RefusedFile};
use clap::Args;
use clap::builder::NonEmptyStringValueParser;
use indicatif::HumanDuration;

use crate::commands::options;
use crate::duration;
use crate::outcome::Outcome;
use crate::session::Session;
use crate::table::{Fit, Table};
use crate::text::seconds;
use crate::wait::{POLL_FIRST, POLL_LAST};

#[derive(Debug, Args)]
pub(crate) struct PreviewArguments {
    /// The machine's id or name
    #[arg(value_name = "ID|NAME", value_parser = NonEmptyStringValueParser::new())]
    machine: String,
    /// The allow policy [default: the one that a restriction would have]
    #[arg(long, value_name = "NAME", value_parser = NonEmptyStringValueParser::new())]
    policy: Option<String>,
    /// Be content with a preview that came within this time, such as 1h; 10s at least
    #[arg(long, value_name = "DURATION", value_parser = duration::parse, default_value = "5m")]
    max_age: Duration,
    /// Wait at most this long for the machine
    #[arg(long, value_name = "DURATION", value_parser = duration::parse, default_value = "2m")]
    timeout: Duration,
}

/// What `--help` says at its end.
pub(crate) const HELP: &str = "\
The machine judges what runs there, and what ran lately when its gate keeps a history, by the code that
would refuse it. Nothing is restricted by it.

Exit codes:
  0  the preview is there, or an older one when the machine cannot make a new one
  3  the machine is still at it
  4  there is none: the machine is not connected, or cannot make one";

/// Asks until the preview is there, and prints it.
pub(crate) async fn run(session: &Session, arguments: &PreviewArguments) -> Result<Outcome> {
    let path = ["api", "machines", &arguments.machine, "impactPreview"];
    let query = options([
        ("policy", arguments.policy.clone()),
        ("maxAge", Some(arguments.max_age.as_secs().to_string())),
    ]);
    let (begun, mut pause) = (Instant::now(), POLL_FIRST);
    let (reply, found) = loop {
        let reply = session.client.get_where(&path, &query).await?;
        let found: ImpactPreview = reply.decode()?;
        if found.state != "Underway" || begun.elapsed() >= arguments.timeout {
            break (reply, found);
        }
        session.progress.waiting(&progress(&found));
        tokio::time::sleep(pause).await;
        pause = (pause * 3 / 2).min(POLL_LAST);
    };
    session.progress.waited();
    let note = |text: &str| session.progress.note(text);
    if let Some(reason) = &found.unavailable_reason {
        note(&format!("{}: no new preview: {reason}", found.computer_dns_name));
    } else if found.state == "Underway" {
        note(&format!("{}: not there after {}", found.computer_dns_name, HumanDuration(arguments.timeout)));
    }
    if let Some(preview) = &found.preview {
        note(&summary(&found, preview));
    }
    session.output.entity_table(&reply, |found: &ImpactPreview| {
        table(found.preview.as_ref().map_or(&[], |preview| &preview.refused))
    })?;
    Ok(match (found.state.as_str(), &found.preview) {
        ("Underway", _) => Outcome::Pending,
        (_, Some(_)) => Outcome::Done,
        (_, None) => Outcome::Failed,
    })
}

fn progress(found: &ImpactPreview) -> String {
    let (done, total) = (found.files_done.unwrap_or(0), found.files_total.unwrap_or(0));
    let name = &found.computer_dns_name;
    if total == 0 { format!("{name}: asked") } else { format!("{name}: {done} of {total} files") }
}

/// What the table is about.
fn summary(found: &ImpactPreview, preview: &Preview) -> String {
    let covers = match preview.history_days {
        Some(days) => format!("what runs, and what ran in the last {days} days"),
        None => "what runs, and nothing else".to_owned(),
    };
    let hidden = preview.refused_files.saturating_sub(preview.refused.len() as u64);
    let hidden = if hidden > 0 { format!("; {hidden} of them are not listed") } else { String::new() };
    let cut = if preview.is_cut { "; there was more to look at" } else { "" };
    format!(
        "{}, policy {} revision {}, at {}Z: restricted now, {} of {} files would be refused{hidden} ({covers}{cut})",
        found.computer_dns_name,
        found.policy,
        found.policy_revision,
        seconds(preview.taken_date_time_utc),
        preview.refused_files,
        preview.files,
    )
}

fn table(files: &[RefusedFile]) -> Table {
    let columns = [
        ("PATH", Fit::Whole),
        ("CAUSE", Fit::Whole),
        ("KIND", Fit::Optional),
        ("LAST SEEN (UTC)", Fit::Optional),
        ("TIMES", Fit::Optional),
        ("PROCESSES", Fit::Cut),
        ("SHA256", Fit::Optional),
    ];
    Table::new(&columns, files, |file| {
        let rule = file.rule.as_ref().map(|rule| format!(" {rule}")).unwrap_or_default();
        let pids: Vec<_> = file.process_ids.iter().map(ToString::to_string).collect();
        let more = if file.processes > pids.len() as u64 { " ..." } else { "" };
        vec![
            file.path.clone(),
            format!("{}{rule}", file.cause),
            if file.mapped_only { "mapped" } else { "program" }.to_owned(),
            seconds(file.last_seen),
            if file.executions > 0 { file.executions.to_string() } else { String::new() },
            format!("{}{more}", pids.join(" ")),
            file.sha256.clone().unwrap_or_default(),
        ]
    })
}
