//! The impact previews that are wanted of one connection.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use control_plane::PreviewStanding;
use domain::digest::Sha256Digest;

/// The most previews of one machine at a time, one for each policy that somebody compares.
const PREVIEWS_MAX: usize = 8;
/// A machine that says nothing of a preview for so long is asked again.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// What is wanted, and how far it is.
#[derive(Default)]
pub(super) struct Previews(Mutex<BTreeMap<Sha256Digest, Entry>>);

struct Entry {
    /// When it was last asked or heard of.
    touched: Instant,
    state: State,
}

enum State {
    /// The machine is to be asked, for one of at most this age.
    Wanted(Duration),
    Underway {
        files_done: u64,
        files_total: u64,
    },
    Failed(String),
}

impl Previews {
    /// Wants a preview. Answers how it stands, and whether the machine is to be asked.
    pub(super) fn want(&self, policy: Sha256Digest, age_max: Duration) -> (PreviewStanding, bool) {
        let mut entries = self.lock();
        match entries.get(&policy) {
            Some(Entry { state: State::Failed(reason), .. }) => {
                let failed = PreviewStanding::Failed(reason.clone());
                entries.remove(&policy);
                return (failed, false);
            }
            Some(Entry { touched, state: State::Underway { files_done, files_total } })
                if touched.elapsed() < SILENCE_MAX =>
            {
                let (files_done, files_total) = (*files_done, *files_total);
                return (PreviewStanding::Underway { files_done, files_total }, false);
            }
            Some(_) | None => {}
        }
        entries.retain(|_, entry| entry.touched.elapsed() < SILENCE_MAX);
        if entries.len() >= PREVIEWS_MAX && !entries.contains_key(&policy) {
            let reason = "the machine is asked for too many previews at once".to_owned();
            return (PreviewStanding::Failed(reason), false);
        }
        entries.insert(policy, Entry { touched: Instant::now(), state: State::Wanted(age_max) });
        (PreviewStanding::Underway { files_done: 0, files_total: 0 }, true)
    }

    /// Takes what the machine is to be asked for.
    pub(super) fn take_wanted(&self) -> Vec<(Sha256Digest, Duration)> {
        let mut wanted = Vec::new();
        for (policy, entry) in self.lock().iter_mut() {
            if let State::Wanted(age_max) = entry.state {
                wanted.push((*policy, age_max));
                *entry = Entry {
                    touched: Instant::now(),
                    state: State::Underway { files_done: 0, files_total: 0 },
                };
            }
        }
        wanted
    }

    /// Whether a preview is wanted: only such a one is taken.
    pub(super) fn is_wanted(&self, policy: Sha256Digest) -> bool {
        self.lock().contains_key(&policy)
    }

    /// Notes how far the machine is.
    pub(super) fn progressed(&self, policy: Sha256Digest, files_done: u64, files_total: u64) {
        self.note(policy, State::Underway { files_done, files_total });
    }

    /// Notes that there will be none.
    pub(super) fn failed(&self, policy: Sha256Digest, reason: String) {
        self.note(policy, State::Failed(reason));
    }

    /// The preview is kept.
    pub(super) fn made(&self, policy: Sha256Digest) {
        self.lock().remove(&policy);
    }

    fn note(&self, policy: Sha256Digest, state: State) {
        if let Some(entry) = self.lock().get_mut(&policy) {
            *entry = Entry { touched: Instant::now(), state };
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Sha256Digest, Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Sha256Digest = Sha256Digest([1; 32]);
    const AGE: Duration = Duration::from_secs(300);

    fn underway(files_done: u64, files_total: u64) -> PreviewStanding {
        PreviewStanding::Underway { files_done, files_total }
    }

    #[test]
    fn a_machine_is_asked_once_however_many_want_it() {
        let previews = Previews::default();
        assert_eq!(previews.want(A, AGE), (underway(0, 0), true));
        assert_eq!(previews.take_wanted(), [(A, AGE)]);
        assert_eq!(previews.want(A, AGE), (underway(0, 0), false));
        assert_eq!(previews.take_wanted(), []);
        previews.progressed(A, 3, 9);
        assert_eq!(previews.want(A, AGE), (underway(3, 9), false));
        previews.made(A);
        assert!(!previews.is_wanted(A));
    }

    #[test]
    fn a_failure_is_told_once_and_then_asked_about_again() {
        let previews = Previews::default();
        previews.failed(A, "nobody wants it".to_owned());
        assert!(!previews.is_wanted(A));
        previews.want(A, AGE);
        previews.failed(A, "no".to_owned());
        assert_eq!(previews.want(A, AGE), (PreviewStanding::Failed("no".to_owned()), false));
        assert_eq!(previews.want(A, AGE), (underway(0, 0), true));
    }

    #[test]
    fn too_many_are_refused() {
        let previews = Previews::default();
        for i in 0..8 {
            assert!(previews.want(Sha256Digest([i; 32]), AGE).1);
        }
        assert!(matches!(previews.want(Sha256Digest([9; 32]), AGE), (PreviewStanding::Failed(_), false)));
        assert_eq!(previews.take_wanted().len(), 8);
    }
}
