//! Impact previews: what a restriction would refuse now, found out while nothing is restricted, or something else is.
//!
//! A preview reads whole programs, so it is made by a patient thread of its own, one at a time, and kept for whoever
//! asks again. The thread that answers the kernel takes no part in it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use domain::decision::{Decision, DecisionCause, Verdict};
use domain::digest::Sha256Digest;
use enforcement::{Examined, Examiner, KnownDigests};
use gate_protocol::{ImpactPreview, PREVIEW_FILES_MAX, PREVIEW_PATHS_BYTES_MAX, RefusedFile, Reply};

use crate::clock::wall as now;
use crate::judge::MachineJudge;
use crate::running::{self, Running};
use crate::text::escaped;

/// How many previews are kept, each up to half a megabyte: one for every policy that is compared at a time.
const KEPT_MAX: usize = 4;
/// The most files that are noted as refused before the list is cut: there are no more running.
const REFUSED_MAX: usize = 65_536;

/// What a preview is about: it is another one when either changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subject {
    /// Digest of the policy; none for the set that applies without one.
    pub policy: Option<Sha256Digest>,
    /// Digest of the package baseline.
    pub baseline: Option<Sha256Digest>,
}

/// The previews of a machine.
#[derive(Default)]
pub struct Previews(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    /// The newest last.
    kept: VecDeque<(Subject, Instant, Arc<ImpactPreview>)>,
    underway: Option<(Subject, Arc<Progress>)>,
    /// Why the last one came to nothing, and what it was about.
    failed: Option<(Subject, String)>,
    known: KnownDigests,
}

/// How far a preview is.
#[derive(Debug, Default)]
struct Progress {
    done: AtomicU64,
    total: AtomicU64,
}

impl Previews {
    /// The preview, when there is one that is young enough; else how far it is. Begins with it when no other is under
    /// way.
    pub fn ask(self: &Arc<Self>, subject: Subject, age_max: Duration, judge: MachineJudge) -> Reply {
        let mut inner = self.lock();
        if inner.failed.as_ref().is_some_and(|(failed, _)| *failed == subject)
            && let Some((_, reason)) = inner.failed.take()
        {
            return Reply::Refused { reason };
        }
        if let Some((underway, progress)) = &inner.underway {
            // Whoever waits for another one is not told how far this one is.
            let of = |count: &AtomicU64| if *underway == subject { count.load(Ordering::Relaxed) } else { 0 };
            return Reply::PreviewUnderway {
                files_done: of(&progress.done),
                files_total: of(&progress.total),
            };
        }
        let young = |(kept, at, _): &&(Subject, Instant, _)| *kept == subject && at.elapsed() <= age_max;
        if let Some((_, _, preview)) = inner.kept.iter().find(young) {
            return Reply::Preview(Box::new(ImpactPreview::clone(preview)));
        }
        let progress = Arc::new(Progress::default());
        let (previews, noted) = (Arc::clone(self), Arc::clone(&progress));
        let known = std::mem::take(&mut inner.known);
        let work = move || {
            let end = End { previews, subject };
            // Whatever else the machine does goes first.
            let _is_patient = rustix::process::setpriority_process(None, 19);
            let made = make(subject, &judge, known, &noted);
            end.with(made);
        };
        let started = std::thread::Builder::new().name("preview".to_owned()).spawn(work);
        if let Err(error) = started {
            return Reply::Refused { reason: format!("no thread for a preview: {error}") };
        }
        inner.underway = Some((subject, progress));
        Reply::PreviewUnderway { files_done: 0, files_total: 0 }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends what is under way, however its thread ends.
struct End {
    previews: Arc<Previews>,
    subject: Subject,
}

impl End {
    fn with(self, made: std::io::Result<(ImpactPreview, KnownDigests)>) {
        let mut inner = self.previews.lock();
        match made {
            Ok((preview, known)) => {
                inner.known = known;
                inner.kept.retain(|(kept, _, _)| *kept != self.subject);
                // Old from its end on: who wants a young one and waits for it gets it, however long it took.
                inner.kept.push_back((self.subject, Instant::now(), Arc::new(preview)));
                if inner.kept.len() > KEPT_MAX {
                    inner.kept.pop_front();
                }
            }
            Err(error) => {
                inner.failed =
                    Some((self.subject, format!("this machine's programs cannot be seen: {error}")));
            }
        }
    }
}

impl Drop for End {
    fn drop(&mut self) {
        self.previews.lock().underway = None;
    }
}

/// Judges everything that runs.
fn make(
    subject: Subject,
    judge: &MachineJudge,
    known: KnownDigests,
    progress: &Progress,
) -> std::io::Result<(ImpactPreview, KnownDigests)> {
    let mut examiner = Examiner::new(known)?;
    let at = now();
    let Running { files, processes, is_cut } = running::look()?;
    progress.total.store(files.len() as u64, Ordering::Relaxed);
    let (mut refused, mut judged) = (BTreeMap::new(), 0);
    for file in &files {
        progress.done.fetch_add(1, Ordering::Relaxed);
        let examined = if file.is_foreign {
            Examined::unverifiable(file.name.clone())
        } else {
            match file.open() {
                Ok(Some(opened)) => examiner.open_file(&opened.into(), judge),
                Ok(None) => continue,
                Err(_) => Examined::unreadable(file.name.clone()),
            }
        };
        judged += 1;
        if examined.decision.verdict == Verdict::Allow || refused.len() >= REFUSED_MAX {
            continue;
        }
        // The same file has several names where it is mounted, or was deleted, in several places.
        let found = refused.entry((examined.file, examined.path)).or_insert_with(|| RefusedFile {
            path: String::new(),
            sha256: examined.digest.map(|digest| digest.to_string()),
            cause: examined.decision.cause.code().to_owned(),
            rule: rule_of(&examined.decision),
            mapped_only: true,
            last_seen: at.ticks(),
            executions: 0,
            processes: 0,
            pids: Vec::new(),
        });
        found.mapped_only &= !file.is_program;
        found.processes += file.processes;
        let room = PIDS_MAX.saturating_sub(found.pids.len());
        found.pids.extend(file.pids.iter().take(room));
    }
    let refused_files = refused.len() as u64;
    let preview = ImpactPreview {
        policy: subject.policy.map(|digest| digest.to_string()),
        at: at.ticks(),
        processes,
        files: judged,
        history_days: None,
        is_cut,
        refused_files,
        refused: listed(refused.into_iter().map(|((_, path), file)| (path, file)).collect()),
    };
    Ok((preview, examiner.into_known()))
}

/// The most processes that are named for one file.
const PIDS_MAX: usize = 16;

fn rule_of(decision: &Decision) -> Option<String> {
    if let DecisionCause::Rule(id) = &decision.cause { Some(id.clone()) } else { None }
}

/// What a preview lists of the files: those that matter most, and no more than it can bear.
fn listed(mut refused: Vec<(Vec<u8>, RefusedFile)>) -> Vec<RefusedFile> {
    refused.sort_by(|(a_path, a), (b_path, b)| {
        let rank = |file: &RefusedFile| (file.processes == 0, file.mapped_only);
        let weight = |file: &RefusedFile| (file.last_seen, file.processes, file.executions);
        rank(a).cmp(&rank(b)).then(weight(b).cmp(&weight(a))).then(a_path.cmp(b_path))
    });
    let mut bytes = 0;
    let named = refused.into_iter().take(PREVIEW_FILES_MAX).map(|(path, file)| {
        let path = escaped(&path);
        RefusedFile { path, ..file }
    });
    named
        .take_while(|file| {
            bytes += file.path.len();
            bytes <= PREVIEW_PATHS_BYTES_MAX
        })
        .collect()
}
