//! Runs the rows that the host asked for, and tells it what came of each.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use domain::allow_policy::{AllowPolicy, Effect, Matcher, Profile, Rule};
use domain::policy_settings::PolicySettings;
use serde::{Deserialize, Serialize};

use crate::gate::{self, ControlPlane, Gate, digest};
use crate::guest::{self, FOLDER};
use crate::lab::{Lab, Outcome};
use crate::peer::Peer;
use crate::report::{Line, Report};
use crate::row::{BOTH, Row, Stage, Tier, Who};
use crate::rows;

/// What the host wants.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    tier: Tier,
    stage: Stage,
    /// Rows to run, as `list` spells them; all of the stage when there are none.
    rows: Vec<String>,
}

/// What is remembered over a boot.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Remembered {
    /// Rows that are done.
    done: Vec<String>,
    /// How many times the row after these had the machine booted.
    boots: u32,
    /// Orders signed so far.
    generation: u64,
}

/// Where it is remembered: on the disk.
const REMEMBERED: &str = "/var/lib/cordon-matrix.json";
/// The control plane's key. The guest is thrown away, and nothing else believes it.
const SEED: [u8; 32] = *b"control plane of a matrix guest.";

/// Runs the rows of a stage. Why they could not be run is told to the host, too.
pub fn run() -> Result<()> {
    let mut report = Report::open()?;
    let result = run_rows(&mut report);
    if let Err(error) = &result {
        report.tell(&Line::Failed { reason: format!("{error:#}") })?;
    }
    result
}

fn run_rows(report: &mut Report) -> Result<()> {
    let wanted: Wanted = serde_json::from_slice(&fs::read(Path::new(FOLDER).join("run.json"))?)?;
    let mut remembered: Remembered = match fs::read(REMEMBERED) {
        Ok(bytes) => serde_json::from_slice(&bytes)?,
        Err(_) => Remembered::default(),
    };
    let mut lab = set_up(&wanted, &remembered)?;
    let is_wanted = |row: &&Row| {
        let id = row.id.to_string();
        row.stage == wanted.stage && (wanted.rows.is_empty() || wanted.rows.contains(&id))
    };
    for row in rows::all().filter(is_wanted) {
        let id = row.id.to_string();
        if remembered.done.contains(&id) {
            continue;
        }
        report.tell(&Line::Begin { row: row.id })?;
        let start = Instant::now();
        lab.begin(row.id, std::mem::take(&mut remembered.boots))?;
        let result = (row.run)(&mut lab);
        let (outcomes, again) = lab.end();
        if let (Ok(()), Some(boot)) = (&result, again) {
            remembered.boots = lab.boots() + 1;
            remembered.generation = lab.control_plane().generation();
            fs::write(REMEMBERED, serde_json::to_vec(&remembered)?)?;
            nix::unistd::sync();
            report.tell(&Line::Again { boot: &boot })?;
            return guest::reboot();
        }
        let milliseconds = start.elapsed().as_millis();
        let result = result.and_then(|()| lab.lift_if_restricted());
        for who in BOTH {
            report.tell(&line(row, wanted.tier, who, &outcomes, result.as_ref().err(), milliseconds))?;
        }
        // After a row that could not lift, nothing could be proved any more.
        lab.lift_if_restricted()?;
        remembered.done.push(id);
    }
    report.tell(&Line::Done)
}

/// Starts what the rows need.
fn set_up(wanted: &Wanted, remembered: &Remembered) -> Result<Lab> {
    let mut control_plane = ControlPlane::new(SEED, remembered.generation);
    if wanted.tier == Tier::Fapolicyd {
        let peer = Peer::new(&listed()?)?;
        return Lab::new(wanted.tier, control_plane, policy()?, None, Some(peer));
    }
    let gate = match wanted.stage {
        Stage::Fast => Some(Gate::start(wanted.tier, "")?),
        Stage::Debian => None,
    };
    let status = gate::status()?;
    let tier = wanted.tier.name();
    ensure!(
        status.tier.as_deref() == Some(tier),
        "the gate's tier is {:?}, wanted {tier}: {}",
        status.tier,
        status.tier_note
    );
    if status.machine.is_none() {
        control_plane.enroll()?;
    }
    let policy = policy()?;
    control_plane.give_policy(&policy)?;
    if !status.restricted {
        gate::give_baseline(&Path::new(FOLDER).join("baseline"))?;
    }
    Lab::new(wanted.tier, control_plane, policy, gate, None)
}

/// This program, and the helpers.
fn listed() -> Result<Vec<PathBuf>> {
    let folder = Path::new(FOLDER);
    let mut listed = vec![folder.join("cordon-matrix")];
    for entry in fs::read_dir(folder.join("helpers"))? {
        listed.push(entry?.path());
    }
    Ok(listed)
}

/// Packages, and what is listed.
fn policy() -> Result<AllowPolicy> {
    let rules: Result<Vec<Rule>> = listed()?
        .iter()
        .map(|path| {
            let bytes = fs::read(path).with_context(|| path.display().to_string())?;
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            Ok(Rule {
                id: name.into_owned(),
                matcher: Matcher::PathSha256(path.as_os_str().as_encoded_bytes().to_vec(), digest(&bytes)),
                effect: Effect::Allow,
                comment: String::new(),
            })
        })
        .collect();
    Ok(AllowPolicy {
        name: "matrix".to_owned(),
        revision: 1,
        profile: Profile::OsAndApproved,
        settings: PolicySettings::default(),
        rules: rules?,
    })
}

/// The result of a row for one user.
fn line<'a>(
    row: &Row,
    tier: Tier,
    who: Who,
    outcomes: &[Outcome],
    error: Option<&anyhow::Error>,
    milliseconds: u128,
) -> Line<'a> {
    let own: Vec<_> = outcomes.iter().filter(|outcome| outcome.who == who).collect();
    let mut deviations: Vec<String> = own
        .iter()
        .filter_map(|outcome| match &outcome.got {
            Ok(got) if outcome.expected.is(*got) => None,
            Ok(got) => Some(format!("{}: expected {}, got {got}", outcome.name, outcome.expected)),
            Err(error) => Some(format!("{}: {error}", outcome.name)),
        })
        .collect();
    match error {
        Some(error) => deviations.push(format!("{error:#} [gate: {}]", gate::log_end())),
        None if own.is_empty() => deviations.push("nothing was tried".to_owned()),
        None => {}
    }
    if tier == Tier::Fapolicyd {
        // To compare with: whatever comes is shown, and nothing is expected.
        deviations.clear();
    }
    let is_ours = tier != Tier::Fapolicyd;
    let expected = if is_ours {
        summary(own.iter().map(|outcome| outcome.expected.to_string()))
    } else {
        "-".to_owned()
    };
    let holds = deviations.is_empty();
    let got = if holds && is_ours {
        expected.clone()
    } else if let Some(error) = error {
        format!("error: {error:#}")
    } else {
        summary(own.iter().map(|outcome| match &outcome.got {
            // The same word for what was expected to run and did.
            Ok(got) if is_ours && outcome.expected.is(*got) => outcome.expected.to_string(),
            Ok(got) => got.to_string(),
            Err(error) => format!("error: {error}"),
        }))
    };
    Line::Result {
        row: row.id,
        tier,
        r#as: who,
        expected,
        got,
        holds,
        deviations,
        tries: own.len(),
        milliseconds,
    }
}

/// Each word once; with its number where there are several.
fn summary(words: impl Iterator<Item = String>) -> String {
    let mut counted: Vec<(String, usize)> = Vec::new();
    for word in words {
        match counted.iter_mut().find(|(known, _)| *known == word) {
            Some((_, count)) => *count += 1,
            None => counted.push((word, 1)),
        }
    }
    match counted.as_slice() {
        [(word, _)] => word.clone(),
        several => {
            several.iter().map(|(word, count)| format!("{count} {word}")).collect::<Vec<_>>().join(", ")
        }
    }
}
