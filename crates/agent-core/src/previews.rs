//! Impact previews on their way from the gate to the server: asked for again and again until they are there.
//!
//! None is kept: whoever wants one asks the server, and the server asks again.

use std::collections::VecDeque;
use std::time::Duration;

use agent_protocol::{
    FromAgent, ImpactPreview, PREVIEW_FILES_MAX, PREVIEW_PIDS_MAX, PreviewReport, PreviewState, RefusedFile,
};
use gate_protocol::{Reply, Request};

use crate::agent::cut;
use crate::effect::{Effect, Timer};

/// The most previews that are wanted at a time.
const WANTED_MAX: usize = 8;
/// How often the gate is asked how far it is.
const ASK_EVERY: Duration = Duration::from_millis(250);
/// The most bytes of a preview's frame, about: three quarters of what a server accepts.
const FRAME_BYTES_MAX: usize = 768 * 1024;
/// The longest texts, in bytes: what the protocol bears.
const PATH_BYTES_MAX: usize = 16 * 1024;
const TEXT_BYTES_MAX: usize = 128;
const REASON_BYTES_MAX: usize = 512;

#[derive(Debug, Default)]
pub(crate) struct Previews {
    wanted: VecDeque<Wanted>,
    is_due: bool,
}

#[derive(Debug)]
struct Wanted {
    policy: String,
    age_seconds_max: u64,
    /// What the server was told last.
    told: Option<(u64, u64)>,
}

impl Previews {
    /// The server wants one.
    pub(crate) fn want(&mut self, policy: String, age_seconds_max: u64, effects: &mut Vec<Effect>) {
        if self.wanted.iter().any(|wanted| wanted.policy == policy) {
            return;
        }
        if self.wanted.len() >= WANTED_MAX {
            let reason = "the machine is asked for too many previews at once".to_owned();
            return effects.push(report(policy, PreviewState::Failed { reason }));
        }
        self.wanted.push_back(Wanted { policy, age_seconds_max, told: None });
        self.is_due = true;
    }

    /// What to ask the gate, and about which policy.
    pub(crate) fn next(&mut self) -> Option<(String, Request)> {
        let wanted = self.wanted.front().filter(|_| self.is_due)?;
        self.is_due = false;
        let policy = wanted.policy.clone();
        let age_seconds_max = wanted.age_seconds_max;
        Some((policy.clone(), Request::Preview { policy: Some(policy), age_seconds_max }))
    }

    /// Takes the gate's answer about a policy. False when it is none.
    pub(crate) fn answered(&mut self, policy: &str, reply: Reply, effects: &mut Vec<Effect>) -> bool {
        let state = match reply {
            Reply::Preview(preview) => PreviewState::Made(preview_of(*preview)),
            Reply::PreviewUnderway { files_done, files_total } => {
                PreviewState::Underway { files_done, files_total }
            }
            Reply::Refused { reason } => PreviewState::Failed { reason: cut(reason, REASON_BYTES_MAX) },
            Reply::Status(_)
            | Reply::Explanation(_)
            | Reply::Done
            | Reply::Accepted { .. }
            | Reply::Receipt { .. }
            | Reply::Lifted { .. }
            | Reply::Denials { .. } => return false,
        };
        // The connection that wanted it may be gone, and another may want something else.
        let Some(wanted) = self.wanted.front_mut().filter(|wanted| wanted.policy == policy) else {
            self.is_due = !self.wanted.is_empty();
            return true;
        };
        if let PreviewState::Underway { files_done, files_total } = state {
            if wanted.told.replace((files_done, files_total)) != Some((files_done, files_total)) {
                effects.push(report(policy.to_owned(), state));
            }
            effects.push(Effect::Arm(Timer::Preview, ASK_EVERY));
        } else {
            effects.push(report(policy.to_owned(), state));
            self.wanted.pop_front();
            self.is_due = !self.wanted.is_empty();
        }
        true
    }

    /// The gate is to be asked again: the pause is over, or it has come back.
    pub(crate) fn look_again(&mut self) {
        self.is_due = !self.wanted.is_empty();
    }

    /// The connection that wanted them is gone.
    pub(crate) fn forget(&mut self) {
        self.wanted.clear();
        self.is_due = false;
    }
}

fn report(policy: String, state: PreviewState) -> Effect {
    Effect::Send(Box::new(FromAgent::Preview(Box::new(PreviewReport { policy, state }))))
}

fn preview_of(preview: gate_protocol::ImpactPreview) -> ImpactPreview {
    let mut bytes = 0;
    let files = preview.refused.into_iter().map(file_of).take(PREVIEW_FILES_MAX);
    let refused = files.take_while(|file| {
        bytes += frame_bytes_of(file);
        bytes <= FRAME_BYTES_MAX
    });
    ImpactPreview {
        at: preview.at,
        processes: preview.processes,
        files: preview.files,
        history_days: preview.history_days,
        is_cut: preview.is_cut,
        refused_files: preview.refused_files,
        refused: refused.collect(),
    }
}

fn file_of(file: gate_protocol::RefusedFile) -> RefusedFile {
    RefusedFile {
        path: cut(file.path, PATH_BYTES_MAX),
        sha256: file.sha256.map(|text| cut(text, TEXT_BYTES_MAX)),
        cause: cut(file.cause, TEXT_BYTES_MAX),
        rule: file.rule.map(|text| cut(text, 2 * TEXT_BYTES_MAX)),
        mapped_only: file.mapped_only,
        last_seen: file.last_seen,
        executions: file.executions,
        processes: file.processes,
        pids: file.pids.into_iter().take(PREVIEW_PIDS_MAX).collect(),
    }
}

/// At most this much JSON: no character takes more than six bytes, and what the gate escaped no more than two.
fn frame_bytes_of(file: &RefusedFile) -> usize {
    let text = |text: &Option<String>| text.as_deref().map_or(0, str::len);
    512 + 2 * file.path.len() + 6 * (file.cause.len() + text(&file.rule)) + text(&file.sha256)
}

#[cfg(test)]
#[expect(clippy::wildcard_enum_match_arm, reason = "a test names what it expects; anything else fails it")]
mod tests {
    use super::*;
    use agent_protocol::{FROM_AGENT_BYTES_MAX, Limited as _};

    fn made(files: usize, path: &str) -> Reply {
        let file = gate_protocol::RefusedFile {
            path: path.to_owned(),
            sha256: Some("a".repeat(64)),
            cause: "unlisted".to_owned(),
            rule: Some("\u{1}".repeat(300)),
            mapped_only: false,
            last_seen: i64::MIN,
            executions: u64::MAX,
            processes: u64::MAX,
            pids: vec![i32::MIN; 40],
        };
        Reply::Preview(Box::new(gate_protocol::ImpactPreview {
            policy: None,
            at: 1,
            processes: 2,
            files: 3,
            history_days: None,
            is_cut: false,
            refused_files: files as u64,
            refused: vec![file; files],
        }))
    }

    fn said(effects: &[Effect]) -> Vec<(String, PreviewState)> {
        let of = |effect: &Effect| match effect {
            Effect::Send(frame) => match frame.as_ref() {
                FromAgent::Preview(report) => Some((report.policy.clone(), report.state.clone())),
                other => panic!("{other:?}"),
            },
            _ => None,
        };
        effects.iter().filter_map(of).collect()
    }

    #[test]
    fn the_gate_is_asked_until_the_preview_is_there_and_then_for_the_next() {
        let (mut previews, mut effects) = (Previews::default(), Vec::new());
        assert_eq!(previews.next(), None);
        for policy in ["a", "a", "b"] {
            previews.want(policy.to_owned(), 60, &mut effects);
        }
        let ask = |policy: &str| {
            let request = Request::Preview { policy: Some(policy.to_owned()), age_seconds_max: 60 };
            Some((policy.to_owned(), request))
        };
        assert_eq!((previews.next(), previews.next()), (ask("a"), None));
        let underway = || Reply::PreviewUnderway { files_done: 1, files_total: 2 };
        assert!(previews.answered("a", underway(), &mut effects));
        assert_eq!(previews.next(), None, "not before the pause is over");
        previews.look_again();
        assert_eq!(previews.next(), ask("a"));
        assert!(previews.answered("a", underway(), &mut effects));
        assert_eq!(
            said(&effects),
            [("a".to_owned(), PreviewState::Underway { files_done: 1, files_total: 2 })]
        );
        effects.clear();
        previews.look_again();
        assert!(previews.next().is_some() && previews.answered("a", made(1, "/x"), &mut effects));
        assert!(matches!(said(&effects).as_slice(), [(policy, PreviewState::Made(_))] if policy == "a"));
        effects.clear();
        assert_eq!(previews.next(), ask("b"));
        assert!(previews.answered("b", Reply::Refused { reason: "no".to_owned() }, &mut effects));
        assert_eq!(said(&effects), [("b".to_owned(), PreviewState::Failed { reason: "no".to_owned() })]);
        assert_eq!(previews.next(), None);
    }

    #[test]
    fn what_a_lost_connection_wanted_is_answered_to_nobody() {
        let (mut previews, mut effects) = (Previews::default(), Vec::new());
        previews.want("a".to_owned(), 60, &mut effects);
        assert!(previews.next().is_some());
        previews.forget();
        previews.want("b".to_owned(), 60, &mut effects);
        assert!(previews.answered("a", made(1, "/x"), &mut effects));
        assert_eq!(said(&effects), []);
        assert_eq!(previews.next().unwrap().0, "b");
        assert!(!previews.answered("b", Reply::Done, &mut effects));
    }

    #[test]
    fn too_many_are_refused() {
        let (mut previews, mut effects) = (Previews::default(), Vec::new());
        for i in 0..=WANTED_MAX {
            previews.want(i.to_string(), 60, &mut effects);
        }
        assert!(matches!(said(&effects).as_slice(), [(_, PreviewState::Failed { .. })]));
    }

    #[test]
    fn a_hostile_preview_never_makes_a_frame_that_the_server_refuses() {
        for (files, path) in [(5000, "/x".to_owned()), (1000, "\\".repeat(40_000)), (1000, "\"".repeat(150))]
        {
            let (mut previews, mut effects) = (Previews::default(), Vec::new());
            previews.want("a".to_owned(), 60, &mut effects);
            assert!(previews.next().is_some() && previews.answered("a", made(files, &path), &mut effects));
            let Effect::Send(frame) = &effects[0] else { panic!("{effects:?}") };
            frame.check().unwrap();
            assert!(agent_protocol::encode(frame).len() <= FROM_AGENT_BYTES_MAX);
            let FromAgent::Preview(report) = frame.as_ref() else { panic!() };
            let PreviewState::Made(preview) = &report.state else { panic!() };
            assert!(preview.refused_files == files as u64 && !preview.refused.is_empty());
        }
    }
}
