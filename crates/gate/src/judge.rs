//! Judges files for the enforcer: survival set, policy, package baseline.

use std::collections::BTreeSet;
use std::fs::{File, Metadata};
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use domain::decision::{Decision, DecisionCause, ExecutionFacts, Verdict};
use domain::digest::Sha256Digest;
use enforcement::{FileFacts, Judge};
use policy::CompiledPolicy;
use policy::baseline::Baseline;

/// Programs that compile what they run, by name: they may make code in memory. Only what may run at all is asked about.
const COMPILERS: &[&str] = &[
    "java",
    "node",
    "nodejs",
    "deno",
    "bun",
    "dotnet",
    "mono",
    "mono-sgen",
    "luajit",
    "pypy",
    "pypy3",
    "ruby",
    "php",
    "php-fpm",
    "php-cgi",
    "gjs",
    "gjs-console",
    "firefox",
    "firefox-esr",
    "firefox-bin",
    "thunderbird",
    "thunderbird-bin",
    "chromium",
    "chrome",
    "electron",
    "code",
    "WebKitWebProcess",
    "qemu-system-x86_64",
    "qemu-system-aarch64",
    "postgres",
    "gnome-shell",
    "polkitd",
    "julia",
    "guile",
    "sbcl",
    "valgrind",
];

/// What follows the name of a program that is there in several versions.
fn is_version(rest: &[u8]) -> bool {
    rest.iter().all(|byte| byte.is_ascii_digit() || matches!(byte, b'.' | b'-'))
}

/// A policy with the trust sources of this machine.
pub struct MachineJudge {
    /// The rules.
    pub policy: CompiledPolicy,
    /// Contents that keep the machine alive and reachable.
    pub survival: BTreeSet<Sha256Digest>,
    /// What packages shipped; none when the machine has no baseline, or a damaged one.
    pub baseline: Option<Arc<Baseline<File>>>,
    /// Where the survival set lies.
    pub survival_places: Vec<PathBuf>,
    /// Names all of this.
    pub id: Sha256Digest,
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

    fn compiles(&self, file: &FileFacts<'_>) -> bool {
        let name = file.path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
        COMPILERS.iter().any(|known| name.strip_prefix(known.as_bytes()).is_some_and(is_version))
    }

    fn id(&self) -> Option<Sha256Digest> {
        Some(self.id)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_compiles_is_known_by_its_name() {
        let judge = MachineJudge {
            policy: CompiledPolicy::os_only(),
            survival: BTreeSet::new(),
            baseline: None,
            survival_places: Vec::new(),
            id: Sha256Digest([0; 32]),
        };
        let compiles = |path: &str| {
            let digest = Sha256Digest([1; 32]);
            judge.compiles(&FileFacts { digest, fs_verity: None, path: path.as_bytes(), device: 0, inode: 0 })
        };
        for path in ["/usr/bin/node", "/usr/lib/jvm/java-17-openjdk-amd64/bin/java", "/usr/bin/ruby3.1"] {
            assert!(compiles(path), "{path}");
        }
        for path in ["/usr/bin/javac", "/usr/bin/node/x", "/usr/bin/bash", ""] {
            assert!(!compiles(path), "{path}");
        }
    }
}
