//! Judges files for the enforcer: survival set, policy, package baseline.

use std::fs::{File, Metadata};
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use domain::decision::{Decision, DecisionCause, ExecutionFacts, Verdict};
use domain::digest::Sha256Digest;
use domain::program_class::ProgramClasses;
use domain::program_start::ProgramStart;
use enforcement::{FileFacts, Judge};
use policy::baseline::Baseline;
use policy::classes::ProgramTable;
use policy::{CompiledPolicy, start};

use crate::survival::Survivors;

/// A policy with the trust sources of this machine.
pub struct MachineJudge {
    /// The rules.
    pub policy: CompiledPolicy,
    /// Contents that keep the machine alive and reachable.
    pub survival: Survivors,
    /// What packages shipped; none when the machine has no baseline, or a damaged one.
    pub baseline: Option<Arc<Baseline<File>>>,
    /// Where the survival set lies.
    pub survival_places: Vec<PathBuf>,
    /// Names all of this.
    pub id: Sha256Digest,
}

impl Judge for MachineJudge {
    fn judge(&self, file: &FileFacts<'_>) -> Decision {
        let shipped = self.shipped(&file.digest);
        let facts = ExecutionFacts {
            digest: file.digest,
            fs_verity: file.fs_verity,
            path: file.path,
            in_package_database: is_packaged(&shipped, file),
            classes: self.classes_of(&shipped, file),
            in_survival_set: self.survival.holds(file),
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

    fn for_each_place(&self, show: &mut dyn FnMut(&[u8]) -> ControlFlow<()>) {
        let survival = self.survival_places.iter().map(|place| place.as_os_str().as_bytes());
        // What keeps the machine alive comes first.
        for place in survival.chain(self.policy.all_places()) {
            if show(place).is_break() {
                return;
            }
        }
        if let Some(baseline) = &self.baseline
            && let Err(error) = baseline.for_each_path(show)
        {
            log!("the package baseline cannot be read, so its programs get no labels: {error}");
        }
    }

    fn id(&self) -> Option<Sha256Digest> {
        Some(self.id)
    }

    fn classes(&self, file: &FileFacts<'_>) -> ProgramClasses {
        self.classes_of(&self.shipped(&file.digest), file)
    }

    fn is_looked_at(&self, classes: ProgramClasses) -> bool {
        start::is_looked_at(self.policy.settings().interpreters, classes)
    }

    fn may_start(&self, classes: ProgramClasses, start: &ProgramStart) -> bool {
        start::may_start(self.policy.settings().interpreters, classes, start)
    }
}

impl MachineJudge {
    /// Where packages shipped this content. A baseline that cannot be read vouches for nothing.
    fn shipped(&self, digest: &Sha256Digest) -> Vec<Vec<u8>> {
        self.baseline.as_ref().and_then(|baseline| baseline.places(digest).ok()).unwrap_or_default()
    }

    /// What the program can do: by every name that packages and rules have for its content, wherever it lies, since a
    /// copy or a link under another name can do the same, and by the name that it is executed by.
    fn classes_of(&self, shipped: &[Vec<u8>], file: &FileFacts<'_>) -> ProgramClasses {
        let shipped = shipped.iter().map(Vec::as_slice);
        ProgramTable::built_in()
            .classes(shipped.chain(self.policy.places(&file.digest)).chain(std::iter::once(file.path)))
    }
}

/// Whether a package shipped this content at a path where this very inode is.
///
/// Identity decides, not the name: behind merged folders, hard links and bind mounts it is the same file, and a copy
/// elsewhere is not.
fn is_packaged(shipped: &[Vec<u8>], file: &FileFacts<'_>) -> bool {
    // The agent writes the baseline, and is not trusted with it: only what root alone can change was installed.
    let installed = |metadata: Metadata| metadata.uid() == 0 && metadata.mode() & 0o022 == 0;
    shipped.iter().any(|place| is_at(place, file).is_some_and(installed))
}

/// What vouches for a part of the survival set: packages, whatever the profile, else the policy.
pub struct PackagesFirst(pub MachineJudge);

impl Judge for PackagesFirst {
    fn judge(&self, file: &FileFacts<'_>) -> Decision {
        if is_packaged(&self.0.shipped(&file.digest), file) {
            return Decision::settled(Verdict::Allow, DecisionCause::PackageDatabase);
        }
        self.0.judge(file)
    }
}

/// What is at `place`, when that is this very inode.
pub(crate) fn is_at(place: &[u8], file: &FileFacts<'_>) -> Option<Metadata> {
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
