//! `cordon manifest`: signed lists of contents, for machines to keep ahead of time. Needs no server.

use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use api_types::date_time::DateTimeUtc;
use clap::Subcommand;
use domain::digest::Sha256Digest;
use orders::{Manifest, SigningKey};
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use crate::duration;
use crate::moment::now;
use crate::outcome::Outcome;
use crate::output::{Format, write};
use crate::text::printable;

/// The deepest folder in a folder that is looked into.
const DEPTH_MAX: usize = 64;

/// Sign lists of programs for machines to keep ahead of time
#[derive(Debug, Subcommand)]
pub(crate) enum ManifestCommand {
    /// Make a key that signs manifests, and print what a policy names it by (settings.manifestKeys)
    Key {
        /// The file for the private key, which must not be there yet
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// Sign a list of programs and libraries
    #[command(after_help = "Put the manifest on machines, as /etc/cordon/manifests.d/NAME.manifest, \
                            owned by root.\nOf a folder everything is listed that can be executed or loaded; links are not followed.")]
    Sign {
        /// The private key that cordon manifest key made
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
        /// What it lists, for people, such as "acme 2.1"
        #[arg(long)]
        name: String,
        /// How long it counts
        #[arg(long, value_name = "DURATION", default_value = "365d", value_parser = duration::parse)]
        expires_in: Duration,
        /// Where to write it, instead of standard output
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
        /// Files, and folders with all that is in them
        #[arg(required = true, value_name = "PATH")]
        paths: Vec<PathBuf>,
    },
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct KeyMade {
    public_key: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ManifestSigned {
    name: String,
    contents: usize,
    expires_at: DateTimeUtc,
    public_key: String,
}

/// Runs the command.
///
/// # Errors
/// Which file cannot be read or written, and why.
pub(crate) fn run(command: &ManifestCommand, format: Format) -> Result<Outcome> {
    match command {
        ManifestCommand::Key { file } => make_key(file, format),
        ManifestCommand::Sign { key, name, expires_in, out, paths } => {
            let key = read_key(key)?;
            let issued_at = now().0;
            let mut digests = Vec::new();
            for path in paths {
                list(path, Named::ByPerson, 0, &mut digests)
                    .with_context(|| format!("cannot list {}", path.display()))?;
            }
            digests.sort_unstable();
            digests.dedup();
            ensure!(!digests.is_empty(), "nothing there can be executed or loaded");
            let manifest =
                Manifest { name: name.clone(), issued_at, expires_at: issued_at.plus(*expires_in), digests };
            let envelope = manifest.sign(&key)?.to_bytes();
            let Some(out) = out else {
                write(&String::from_utf8(envelope)?, "\n")?;
                return Ok(Outcome::Done);
            };
            fs::write(out, envelope).with_context(|| format!("cannot write {}", out.display()))?;
            let signed = ManifestSigned {
                name: manifest.name,
                contents: manifest.digests.len(),
                expires_at: DateTimeUtc(manifest.expires_at),
                public_key: key.public_key().to_string(),
            };
            match format {
                Format::Json => write(&serde_json::to_string(&signed)?, "\n")?,
                Format::Table => {
                    let ManifestSigned { name, contents, expires_at, .. } = signed;
                    write(&format!("{}: {contents} contents until {expires_at}", printable(&name)), "\n")?;
                }
            }
            Ok(Outcome::Done)
        }
    }
}

fn make_key(path: &Path, format: Format) -> Result<Outcome> {
    let key = SigningKey::generate().context("the system has no random numbers")?;
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .with_context(|| format!("cannot make {}", path.display()))?;
    writeln!(file, "{}", Sha256Digest(key.to_seed()))?;
    file.sync_all()?;
    let public_key = key.public_key().to_string();
    match format {
        Format::Json => write(&serde_json::to_string(&KeyMade { public_key })?, "\n")?,
        Format::Table => write(&public_key, "\n")?,
    }
    Ok(Outcome::Done)
}

/// A key file is the seed in hexadecimal digits, which only its owner may read.
fn read_key(path: &Path) -> Result<SigningKey> {
    let name = path.display();
    let file = File::open(path).with_context(|| format!("cannot read {name}"))?;
    let mode = file.metadata()?.permissions().mode();
    ensure!(mode & 0o077 == 0, "{name} is a private key that others can read or change: chmod 600");
    let mut text = String::new();
    file.take(100).read_to_string(&mut text).with_context(|| format!("cannot read {name}"))?;
    let Ok(Sha256Digest(seed)) = text.trim().parse() else {
        bail!("{name} is not a key that cordon manifest key made");
    };
    Ok(SigningKey::from_seed(&seed))
}

/// Whether a file is listed because a person named it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Named {
    ByPerson,
    ByFolder,
}

fn list(path: &Path, named: Named, depth: usize, digests: &mut Vec<Sha256Digest>) -> Result<()> {
    let metadata = match named {
        Named::ByPerson => fs::metadata(path),
        Named::ByFolder => fs::symlink_metadata(path),
    };
    let metadata = metadata.with_context(|| path.display().to_string())?;
    if metadata.is_dir() {
        ensure!(depth < DEPTH_MAX, "{}: too many folders in each other", path.display());
        for entry in fs::read_dir(path).with_context(|| path.display().to_string())? {
            list(&entry?.path(), Named::ByFolder, depth + 1, digests)?;
        }
    } else if metadata.is_file() {
        let (digest, can_run) = read(path).with_context(|| path.display().to_string())?;
        if named == Named::ByPerson || can_run || metadata.permissions().mode() & 0o111 != 0 {
            digests.push(digest);
        }
    } else {
        ensure!(named == Named::ByFolder, "{}: neither a file nor a folder", path.display());
    }
    Ok(())
}

/// A file's digest, and whether it begins as what the kernel or a loader would run.
fn read(path: &Path) -> std::io::Result<(Sha256Digest, bool)> {
    let mut file = File::open(path)?;
    let mut hasher = Sha256::new();
    let mut start = Vec::new();
    (&mut file).take(4).read_to_end(&mut start)?;
    hasher.update(&start);
    let mut buffer = vec![0; 64 * 1024];
    while let count @ 1.. = file.read(&mut buffer)? {
        hasher.update(buffer.get(..count).unwrap_or_default());
    }
    Ok((Sha256Digest(hasher.finalize().into()), start == b"\x7fELF" || start.starts_with(b"#!")))
}
