//! Judges files for the enforcer: survival set, policy, package baseline.

use std::collections::BTreeSet;
use std::fs::{File, Metadata};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;

use domain::decision::{Decision, DecisionCause, ExecutionFacts, Verdict};
use domain::digest::Sha256Digest;
use enforcement::{FileFacts, Judge};
use policy::CompiledPolicy;
use policy::baseline::Baseline;

/// A policy with the trust sources of this machine.
pub struct MachineJudge {
    /// The rules.
    pub policy: CompiledPolicy,
    /// Contents that keep the machine alive and reachable.
    pub survival: BTreeSet<Sha256Digest>,
    /// What packages shipped; none when the machine has no baseline, or a damaged one.
    pub baseline: Option<Arc<Baseline<File>>>,
}

impl Judge for MachineJudge {
    fn judge(&self, file: &FileFacts<'_>) -> Decision {
        let facts = ExecutionFacts {
            digest: file.digest,
            fs_verity: file.fs_verity,
            path: file.path,
            in_package_database: self.is_packaged(file),
            in_survival_set: self.survival.contains(&file.digest),
        };
        // In a mount namespace of their own, users choose the names that files are executed by. A rule about a place
        // counts for the file that is there, whatever it is called where it was executed; a name alone allows nothing.
        let by_name = match self.policy.evaluate(&facts) {
            allowed if allowed.verdict == Verdict::Allow && is_at(file.path, file).is_none() => {
                self.policy.evaluate(&ExecutionFacts { path: b"", ..facts })
            }
            by_name => by_name,
        };
        let places = self.policy.places(&file.digest).filter(|place| is_at(place, file).is_some());
        places.map(|path| self.policy.evaluate(&ExecutionFacts { path, ..facts })).fold(by_name, stricter)
    }
}

impl MachineJudge {
    /// Whether a package shipped this content at a path where this very inode is.
    ///
    /// Identity decides, not the name: behind merged folders, hard links and bind mounts it is the same file, and a
    /// copy elsewhere is not. A baseline that cannot be read vouches for nothing.
    fn is_packaged(&self, file: &FileFacts<'_>) -> bool {
        let Some(baseline) = &self.baseline else { return false };
        let places = baseline.places(&file.digest).unwrap_or_default();
        // The agent writes the baseline, and is not trusted with it: only what root alone can change was installed.
        let installed = |metadata: Metadata| metadata.uid() == 0 && metadata.mode() & 0o022 == 0;
        places.iter().any(|place| is_at(place, file).is_some_and(installed))
    }
}

/// What is at `place`, when that is this very inode.
fn is_at(place: &[u8], file: &FileFacts<'_>) -> Option<Metadata> {
    let metadata = std::fs::metadata(Path::new(std::ffi::OsStr::from_bytes(place))).ok()?;
    ((metadata.dev(), metadata.ino()) == (file.device, file.inode)).then_some(metadata)
}

/// A rule that denies counts by whichever name it matched; otherwise a rule that allows does.
fn stricter(a: Decision, b: Decision) -> Decision {
    let rank = |decision: &Decision| match (&decision.cause, decision.verdict) {
        (DecisionCause::Rule(_), Verdict::Deny) => 2,
        (_, Verdict::Allow) => 1,
        (_, Verdict::Deny) => 0,
    };
    if rank(&b) > rank(&a) { b } else { a }
}
