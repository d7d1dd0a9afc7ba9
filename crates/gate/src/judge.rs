//! Judges files for the enforcer: survival set, policy, package baseline.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;

use domain::decision::{Decision, ExecutionFacts};
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
        self.policy.evaluate(&ExecutionFacts {
            digest: file.digest,
            path: file.path,
            in_package_database: self.is_packaged(file),
            in_survival_set: self.survival.contains(&file.digest),
        })
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
        places.iter().any(|place| {
            let place = Path::new(std::ffi::OsStr::from_bytes(place));
            std::fs::metadata(place)
                .is_ok_and(|metadata| (metadata.dev(), metadata.ino()) == (file.device, file.inode))
        })
    }
}
