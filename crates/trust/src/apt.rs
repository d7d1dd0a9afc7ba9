//! What a repository's signature vouches for: the files in an archive (`.deb`) that is about to be installed.
//!
//! The chain is the one that apt follows (`apt-secure(8)`): a key signs `InRelease`; that holds the SHA-256 of each
//! list of packages; a list holds the SHA-256 of each archive. Keys are those that the caller froze, lists are those
//! that apt fetched last, and an archive that no list names vouches for nothing.
//!
//! Three programs of the machine's own packages do what they exist for, as an unprivileged user and with nothing but
//! pipes: `gpgv` checks the signature, apt's `apt-helper` unpacks lists, `dpkg-deb` unpacks archives. What they answer
//! is bounded here, and counts only after the digest before it was right.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, BufReader, Read, Seek as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

use domain::digest::Sha256Digest;
use policy::baseline::Builder;
use rustix::fs::OFlags;
use sha2::{Digest as _, Sha256};

use crate::content::is_executable;
use crate::root::path_of;

mod keyrings;
mod lists;
mod release;

pub use keyrings::keyrings;
pub use lists::{Named, read_list};
pub use release::{ListEntry, read_release};

/// The most archives of one update. A change of the distribution's release has about three thousand.
pub const ARCHIVES_MAX: usize = 8_192;
/// The longest archive, in bytes; the largest of Debian 12 has under 2 GiB.
pub const ARCHIVE_BYTES_MAX: u64 = 4 << 30;
/// The longest `InRelease`, in bytes; Debian's have under 300 KB.
const RELEASE_BYTES_MAX: u64 = 16 << 20;
/// The longest list of packages, unpacked, in bytes; Debian's main has under 60 MB.
const LIST_BYTES_MAX: u64 = 1 << 30;
/// The most bytes that are unpacked of one archive.
const CONTENT_BYTES_MAX: u64 = 16 << 30;
/// The most files of one archive.
const MEMBERS_MAX: u64 = 500_000;
/// The most `InRelease` files that are looked at.
const RELEASES_MAX: usize = 256;
/// `nobody` of every distribution: it owns nothing.
const NOBODY: u32 = 65_534;

/// The repositories of a machine.
#[derive(Debug, Clone)]
pub struct Repositories {
    /// What apt fetched: `/var/lib/apt/lists`.
    pub lists: PathBuf,
    /// Keys whose signatures count, each a file that `gpgv` reads.
    pub keyrings: Vec<PathBuf>,
    /// Where archives are copied to while they are read, so that they cannot change. Only root may write there.
    pub scratch: PathBuf,
}

/// What became of the archives of an update.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Vouched {
    /// Archives whose files count from now on.
    pub archives: Vec<PathBuf>,
    /// Archives that vouch for nothing, and why.
    pub refused: Vec<(PathBuf, String)>,
    /// Files that can be executed or loaded, of all archives that count.
    pub files: u64,
}

/// Why nothing could be looked up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// More archives than [`ARCHIVES_MAX`].
    #[error("{0} archives at once, at most {ARCHIVES_MAX} are possible")]
    TooMany(usize),
    /// The folder of the lists cannot be read.
    #[error("cannot read apt's lists in {}", path.display())]
    Lists {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// A copy of an archive that nobody can change.
struct Copy {
    path: PathBuf,
    content: File,
}

impl Repositories {
    /// Adds to `builder` the files that can be executed or loaded, of those archives that a signed list names, by
    /// content and by the places where dpkg puts them.
    ///
    /// # Errors
    /// [`Error`]. What is wrong with one archive is no error but said in the answer.
    pub fn vouch(&self, archives: &[PathBuf], builder: &mut Builder) -> Result<Vouched, Error> {
        if archives.len() > ARCHIVES_MAX {
            return Err(Error::TooMany(archives.len()));
        }
        let mut answer = Vouched::default();
        let mut copies: BTreeMap<Sha256Digest, Copy> = BTreeMap::new();
        for path in archives {
            match self.copy(path) {
                Ok((digest, content)) => {
                    copies.insert(digest, Copy { path: path.clone(), content });
                }
                Err(error) => answer.refused.push((path.clone(), error.to_string())),
            }
        }
        let mut named: HashMap<Sha256Digest, Named> = HashMap::new();
        for release in self.releases()? {
            if named.len() == copies.len() {
                break;
            }
            // A repository that is not sound vouches for nothing, and the others still do.
            let Ok(entries) = self.verified(&release) else { continue };
            for entry in entries {
                let wanted = |digest: &Sha256Digest| copies.contains_key(digest);
                if let Ok(found) = self.look_up(&release, &entry, &wanted) {
                    named.extend(found);
                }
            }
        }
        for (digest, mut copy) in copies {
            let result = match named.get(&digest) {
                Some(named) => {
                    add_archive(&mut copy.content, named, builder).map_err(|error| error.to_string())
                }
                None => Err("no list of packages with a valid signature names it".to_owned()),
            };
            match result {
                Ok(files) => {
                    answer.files += files;
                    answer.archives.push(copy.path);
                }
                Err(reason) => answer.refused.push((copy.path, reason)),
            }
        }
        Ok(answer)
    }

    /// Copies an archive to where nobody can change it, and hashes the copy.
    fn copy(&self, path: &Path) -> io::Result<(Sha256Digest, File)> {
        let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
        let original = File::options().read(true).custom_flags(flags).open(path)?;
        let metadata = original.metadata()?;
        if !metadata.is_file() || metadata.len() > ARCHIVE_BYTES_MAX {
            return Err(invalid("not a regular file of possible size"));
        }
        let mut copy = tempfile::tempfile_in(&self.scratch)?;
        let mut hasher = Hashing { inner: original.take(ARCHIVE_BYTES_MAX), hasher: Sha256::new() };
        io::copy(&mut hasher, &mut copy)?;
        Ok((hasher.digest(), copy))
    }

    /// The signed descriptions of repositories that apt fetched.
    fn releases(&self) -> Result<Vec<PathBuf>, Error> {
        let error = |source| Error::Lists { path: self.lists.clone(), source };
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&self.lists).map_err(error)? {
            let path = entry.map_err(error)?.path();
            if path.file_name().is_some_and(|name| name.as_encoded_bytes().ends_with(b"_InRelease")) {
                found.push(path);
            }
        }
        found.sort();
        found.truncate(RELEASES_MAX);
        Ok(found)
    }

    /// The lists that a description names, if a key that counts has signed it. Only bytes that `gpgv` found signed are
    /// read: the file may hold more.
    fn verified(&self, release: &Path) -> io::Result<Vec<ListEntry>> {
        let mut gpgv = unprivileged("/usr/bin/gpgv");
        for keyring in &self.keyrings {
            gpgv.arg("--keyring").arg(keyring);
        }
        let mut running = Running::start(gpgv.args(["--output", "-", "--"]).arg(release), Stdio::null())?;
        let mut text = Vec::new();
        running.output.by_ref().take(RELEASE_BYTES_MAX).read_to_end(&mut text)?;
        running.end()?;
        Ok(read_release(&text))
    }

    /// The wanted archives that one list names, if the list is the one that was signed.
    fn look_up(
        &self,
        release: &Path,
        entry: &ListEntry,
        wanted: &dyn Fn(&Sha256Digest) -> bool,
    ) -> io::Result<HashMap<Sha256Digest, Named>> {
        let Some(list) = list_file(release, &entry.name) else { return Ok(HashMap::new()) };
        let mut helper = unprivileged("/usr/lib/apt/apt-helper");
        let mut running = Running::start(helper.arg("cat-file").arg(list), Stdio::null())?;
        let mut content = Hashing {
            inner: running.output.by_ref().take(LIST_BYTES_MAX.min(entry.bytes.saturating_add(1))),
            hasher: Sha256::new(),
        };
        let found = read_list(BufReader::new(&mut content), wanted)?;
        let digest = content.digest();
        if digest != entry.sha256 {
            return Err(invalid("the list is not the one that was signed"));
        }
        running.end()?;
        Ok(found)
    }
}

/// The file of a list that a description names, whichever way apt keeps it.
fn list_file(release: &Path, name: &str) -> Option<PathBuf> {
    let prefix = release.to_str()?.strip_suffix("InRelease")?;
    let plain = format!("{prefix}{}", name.replace('/', "_"));
    ["", ".lz4", ".gz", ".xz", ".zst", ".bz2"]
        .iter()
        .map(|extension| PathBuf::from(format!("{plain}{extension}")))
        .find(|path| path.is_file())
}

/// Adds what an archive holds; answers how many files it were.
fn add_archive(archive: &mut File, named: &Named, builder: &mut Builder) -> io::Result<u64> {
    let mut files = 0;
    members(archive, "--fsys-tarfile", &mut |path, digest| {
        files += 1;
        builder.add(digest, path);
    })?;
    // dpkg runs an archive's scripts from these places, before and after it is unpacked (dpkg(1), deb-preinst(5)).
    members(archive, "--ctrl-tarfile", &mut |path, digest| {
        let Some(script) = path.strip_prefix(b"/").and_then(|name| std::str::from_utf8(name).ok()) else {
            return;
        };
        if !matches!(script, "preinst" | "postinst" | "prerm" | "postrm" | "config") {
            return;
        }
        files += 1;
        let Named { package, architecture } = named;
        for place in [
            format!("/var/lib/dpkg/tmp.ci/{script}"),
            format!("/var/lib/dpkg/info/{package}.{script}"),
            format!("/var/lib/dpkg/info/{package}:{architecture}.{script}"),
        ] {
            builder.add(digest, place.as_bytes());
        }
    })?;
    Ok(files)
}

/// Calls `file` for each regular file of an archive that can be executed or loaded.
fn members(archive: &mut File, part: &str, file: &mut dyn FnMut(&[u8], Sha256Digest)) -> io::Result<()> {
    archive.rewind()?;
    let mut dpkg_deb = unprivileged("/usr/bin/dpkg-deb");
    let mut running = Running::start(dpkg_deb.args([part, "-"]), Stdio::from(archive.try_clone()?))?;
    read_members(running.output.by_ref().take(CONTENT_BYTES_MAX), file)?;
    // dpkg-deb fails when its output is not taken to the end.
    io::copy(&mut running.output.by_ref().take(CONTENT_BYTES_MAX), &mut io::sink())?;
    running.end()
}

/// Calls `file` for each regular file of a tar stream that can be executed or loaded, with its absolute path.
///
/// # Errors
/// `InvalidData` when it is no tar stream, or holds more than is possible; from the input.
pub fn read_members(input: impl Read, file: &mut dyn FnMut(&[u8], Sha256Digest)) -> io::Result<()> {
    let mut archive = tar::Archive::new(input);
    // A hard link is a file of its own, with the content of one before it.
    let mut known: HashMap<Vec<u8>, Option<Sha256Digest>> = HashMap::new();
    let mut count = 0;
    for member in archive.entries()? {
        let mut member = member?;
        count += 1;
        if count > MEMBERS_MAX {
            return Err(invalid("the archive holds more files than are possible"));
        }
        let Some(path) = absolute(&member.path_bytes()) else { continue };
        let kind = member.header().entry_type();
        let found = if kind.is_hard_link() {
            let target = member.link_name_bytes().and_then(|target| absolute(&target));
            target.and_then(|target| known.get(&target).copied()).flatten()
        } else if kind.is_file() {
            let mode = member.header().mode()?;
            read_member(&mut member, mode)?
        } else {
            continue;
        };
        if let Some(digest) = found {
            file(&path, digest);
        }
        known.insert(path, found);
    }
    Ok(())
}

/// The digest of one member, when it can be executed or loaded.
fn read_member(member: &mut impl Read, mode: u32) -> io::Result<Option<Sha256Digest>> {
    let mut beginning = Vec::with_capacity(4);
    member.by_ref().take(4).read_to_end(&mut beginning)?;
    let mut hasher = Hashing { inner: member, hasher: Sha256::new_with_prefix(&beginning) };
    io::copy(&mut hasher, &mut io::sink())?;
    Ok(is_executable(mode, &beginning).then(|| hasher.digest()))
}

/// `./usr/bin/true` as `/usr/bin/true`; nothing for a path that leaves the archive's root.
fn absolute(member: &[u8]) -> Option<Vec<u8>> {
    let path = member.strip_prefix(b"./").or_else(|| member.strip_prefix(b"/")).unwrap_or(member);
    let sound = path_of(path).components().all(|part| matches!(part, std::path::Component::Normal(_)));
    (sound && !path.is_empty()).then(|| [b"/", path].concat())
}

/// A program that may read what everybody may, and nothing else.
fn unprivileged(program: &str) -> Command {
    let mut command = Command::new(program);
    command.env_clear().env("PATH", "/usr/bin:/bin").env("LC_ALL", "C").current_dir("/");
    if rustix::process::geteuid().is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    command
}

/// A program whose output is read; killed when it is not read to the end.
struct Running {
    program: String,
    child: Child,
    output: ChildStdout,
}

impl Running {
    fn start(command: &mut Command, input: Stdio) -> io::Result<Self> {
        let program = command.get_program().to_string_lossy().into_owned();
        let mut child = command
            .stdin(input)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| io::Error::new(error.kind(), format!("{program}: {error}")))?;
        let output = child.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
        Ok(Self { program, child, output })
    }

    /// Waits for the end, which must be a success.
    fn end(mut self) -> io::Result<()> {
        let status = self.child.wait()?;
        if status.success() { Ok(()) } else { Err(invalid(&format!("{}: {status}", self.program))) }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Without effect after it has ended.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Hashes what passes through.
struct Hashing<R> {
    inner: R,
    hasher: Sha256,
}

impl<R> Hashing<R> {
    fn digest(self) -> Sha256Digest {
        Sha256Digest(self.hasher.finalize().into())
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hasher.update(buffer.get(..count).unwrap_or_default());
        Ok(count)
    }
}

fn invalid(reason: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}
