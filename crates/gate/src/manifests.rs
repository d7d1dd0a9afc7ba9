//! The signed manifests that lie on the machine, read when a restriction begins.
//!
//! What counts then is kept with the gate's state and counts until the next order: whatever is put beside them, expires
//! or is removed meanwhile changes nothing.

use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use domain::time::Timestamp;
use nix::libc::{O_NOFOLLOW, O_NONBLOCK};
use orders::{TrustedKeys, VerifiedManifest};
use policy::Manifests;

/// The most manifests that are read, the first by name.
const MANIFESTS_MAX: usize = 64;
/// The most bytes of all of them together: they are kept in one file.
const BYTES_MAX: u64 = 12 * 1024 * 1024;

/// Manifests that count, and those that do not.
#[derive(Default)]
pub struct ReadManifests {
    manifests: Vec<VerifiedManifest>,
    /// The exact bytes of those that count.
    pub envelopes: Vec<String>,
    /// Why others do not count, by the names of their files.
    pub problems: Vec<String>,
}

impl ReadManifests {
    /// Reads the files `*.manifest` of a folder. Only what root alone can change is looked at: who may put an old one
    /// back chooses what it lists. Without trusted keys nothing is read.
    pub fn read(folder: &Path, keys: &TrustedKeys, now: Timestamp) -> Self {
        let mut read = Self::default();
        if keys.iter().next().is_none() {
            return read;
        }
        let names = match names(folder) {
            Ok(names) => names,
            Err(error) => {
                read.problems.push(format!("{}: {error:#}", folder.display()));
                return read;
            }
        };
        let mut bytes_left = BYTES_MAX;
        for (index, name) in names.iter().enumerate() {
            let verified = if index < MANIFESTS_MAX {
                read_file(&folder.join(name), &mut bytes_left)
            } else {
                Err(anyhow::anyhow!("more than {MANIFESTS_MAX} manifests"))
            };
            let verified = verified.and_then(|envelope| {
                Ok((VerifiedManifest::verify(envelope.as_bytes(), keys, now)?, envelope))
            });
            match verified {
                Ok((manifest, envelope)) => {
                    read.manifests.push(manifest);
                    read.envelopes.push(envelope);
                }
                Err(error) => read.problems.push(format!("{}: {error:#}", name.escape_debug())),
            }
        }
        read
    }

    /// Those that counted when the machine was restricted, whatever time it is.
    pub fn kept(envelopes: Vec<String>, keys: &TrustedKeys) -> Self {
        let mut read = Self::default();
        for envelope in envelopes {
            match VerifiedManifest::verify_kept(envelope.as_bytes(), keys) {
                Ok(manifest) => {
                    read.manifests.push(manifest);
                    read.envelopes.push(envelope);
                }
                Err(error) => read.problems.push(format!("a manifest that was kept: {error}")),
            }
        }
        read
    }

    /// What they list.
    pub fn list(&self) -> Manifests {
        Manifests::new(self.manifests.iter().map(|verified| {
            let manifest = verified.manifest();
            (manifest.name.as_str(), manifest.digests.as_slice())
        }))
    }
}

/// The names of a folder's manifests, sorted. A folder that is not there has none.
fn names(folder: &Path) -> Result<Vec<String>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    ensure_only_root(&fs::metadata(folder)?)?;
    let mut names = Vec::new();
    for entry in entries {
        let name = entry?.file_name();
        if name.as_encoded_bytes().ends_with(b".manifest") {
            names.push(name.into_string().ok().context("the name of a manifest is not UTF-8")?);
        }
    }
    names.sort();
    Ok(names)
}

fn read_file(path: &Path, bytes_left: &mut u64) -> Result<String> {
    let file = File::options().read(true).custom_flags(O_NOFOLLOW | O_NONBLOCK).open(path)?;
    let metadata = file.metadata()?;
    ensure!(metadata.is_file(), "not a regular file");
    ensure_only_root(&metadata)?;
    ensure!(metadata.len() <= VerifiedManifest::BYTES_MAX as u64, "too long for a manifest");
    ensure!(metadata.len() <= *bytes_left, "the manifests are longer than {BYTES_MAX} bytes together");
    *bytes_left -= metadata.len();
    let mut text = String::new();
    file.take(metadata.len()).read_to_string(&mut text)?;
    Ok(text)
}

fn ensure_only_root(metadata: &fs::Metadata) -> Result<()> {
    ensure!(metadata.uid() == 0 && metadata.mode() & 0o022 == 0, "others than root can change it");
    Ok(())
}
