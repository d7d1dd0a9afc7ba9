//! A real repository: archives made by `dpkg-deb`, a list, a description signed by `gpg`.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use domain::digest::Sha256Digest;
use policy::baseline::{Baseline, Builder};
use sha2::{Digest as _, Sha256};
use trust::apt::{Repositories, Vouched, read_members};

const SCRIPT: &[u8] = b"#!/bin/sh\nexit 0\n";
const PROGRAM: &[u8] = b"\x7fELF not really";

fn digest(content: &[u8]) -> Sha256Digest {
    Sha256Digest(Sha256::digest(content).into())
}

fn run(command: &mut Command) {
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A repository as apt leaves it on a machine.
struct Repository {
    folder: tempfile::TempDir,
    archive: PathBuf,
}

impl Repository {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        // The programs that read it own nothing.
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let archive = folder.path().join("hello.deb");
        let repository = Self { folder, archive };
        for name in ["lists", "scratch", "gnupg", "tree/DEBIAN", "tree/usr/bin", "tree/usr/share"] {
            fs::create_dir_all(repository.path(name)).unwrap();
        }
        fs::set_permissions(repository.path("gnupg"), fs::Permissions::from_mode(0o700)).unwrap();
        repository.build_archive(PROGRAM);
        repository.describe();
        repository.sign();
        repository
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn build_archive(&self, program: &[u8]) {
        let control = "Package: hello\nVersion: 1\nArchitecture: amd64\nMaintainer: A <a@example.org>\nDescription: x\n";
        fs::write(self.path("tree/DEBIAN/control"), control).unwrap();
        for (name, content, mode) in [
            ("tree/DEBIAN/postinst", SCRIPT, 0o755),
            ("tree/usr/bin/hello", program, 0o755),
            ("tree/usr/share/text", b"nothing to run", 0o644),
        ] {
            fs::write(self.path(name), content).unwrap();
            fs::set_permissions(self.path(name), fs::Permissions::from_mode(mode)).unwrap();
        }
        drop(fs::remove_file(self.path("tree/usr/bin/hi")));
        fs::hard_link(self.path("tree/usr/bin/hello"), self.path("tree/usr/bin/hi")).unwrap();
        run(Command::new("dpkg-deb").arg("--build").arg(self.path("tree")).arg(&self.archive));
    }

    fn list(&self) -> PathBuf {
        self.path("lists/example.org_dists_stable_main_binary-amd64_Packages")
    }

    fn release(&self) -> PathBuf {
        self.path("lists/example.org_dists_stable_InRelease")
    }

    /// Writes the list, and the description that names it.
    fn describe(&self) {
        let sha256 = digest(&fs::read(&self.archive).unwrap());
        let list = format!("Package: hello\nArchitecture: amd64\nVersion: 1\nSHA256: {sha256}\n\n");
        let entry = format!(" {} {} main/binary-amd64/Packages", digest(list.as_bytes()), list.len());
        fs::write(self.list(), list).unwrap();
        fs::write(self.path("Release"), format!("Origin: test\nSHA256:\n{entry}\n")).unwrap();
    }

    fn gpg(&self) -> Command {
        let mut gpg = Command::new("gpg");
        gpg.arg("--homedir").arg(self.path("gnupg")).args(["--batch", "--yes", "--quiet", "--no-tty"]);
        gpg
    }

    fn sign(&self) {
        let name = ["--passphrase", "", "--quick-generate-key", "test@example.org", "ed25519", "sign"];
        run(self.gpg().args(name));
        run(self.gpg().arg("--output").arg(self.path("keyring.gpg")).arg("--export"));
        self.sign_again();
        run(Command::new("gpgconf").arg("--homedir").arg(self.path("gnupg")).args(["--kill", "all"]));
    }

    fn sign_again(&self) {
        run(self.gpg().arg("--output").arg(self.release()).arg("--clearsign").arg(self.path("Release")));
        fs::set_permissions(self.release(), fs::Permissions::from_mode(0o644)).unwrap();
    }

    fn repositories(&self) -> Repositories {
        Repositories {
            lists: self.path("lists"),
            keyrings: vec![self.path("keyring.gpg")],
            scratch: self.path("scratch"),
        }
    }

    fn vouch(&self) -> (Vouched, Vec<u8>) {
        let mut builder = Builder::default();
        let vouched = self.repositories().vouch(std::slice::from_ref(&self.archive), &mut builder).unwrap();
        let mut bytes = Vec::new();
        builder.finish(&mut bytes).unwrap();
        (vouched, bytes)
    }

    /// Holds that the archive vouches for nothing, and why.
    fn assert_refused(&self, reason: &str) {
        let (vouched, bytes) = self.vouch();
        assert_eq!(vouched.archives, Vec::<PathBuf>::new());
        assert!(vouched.refused[0].1.contains(reason), "{vouched:?}");
        assert_eq!(Baseline::open(bytes.as_slice()).unwrap().files(), 0);
    }
}

fn places(baseline: &[u8], content: &[u8]) -> Vec<String> {
    let baseline = Baseline::open(baseline).unwrap();
    baseline.verify().unwrap();
    let places = baseline.places(&digest(content)).unwrap();
    places.into_iter().map(|place| String::from_utf8(place).unwrap()).collect()
}

#[test]
fn a_signed_list_vouches_for_what_an_archive_holds() {
    let repository = Repository::new();
    let (vouched, bytes) = repository.vouch();
    assert_eq!(vouched, Vouched { archives: vec![repository.archive.clone()], refused: vec![], files: 3 });
    assert_eq!(places(&bytes, PROGRAM), ["/usr/bin/hello", "/usr/bin/hi"]);
    assert_eq!(
        places(&bytes, SCRIPT),
        [
            "/var/lib/dpkg/info/hello.postinst",
            "/var/lib/dpkg/info/hello:amd64.postinst",
            "/var/lib/dpkg/tmp.ci/postinst",
        ]
    );
    assert_eq!(places(&bytes, b"nothing to run"), Vec::<String>::new());

    // The way in which apt keeps lists where space is short.
    run(Command::new("gzip").arg(repository.list()));
    assert_eq!(repository.vouch().0, vouched);
}

#[test]
fn whatever_breaks_the_chain_vouches_for_nothing() {
    let repository = Repository::new();
    let unnamed = "no list of packages with a valid signature names it";

    // Another archive under the same name.
    let archive = fs::read(&repository.archive).unwrap();
    repository.build_archive(b"#!/bin/sh\necho evil\n");
    repository.assert_refused(unnamed);

    // A list that names it, and is not the one that was signed.
    let signed = fs::read(repository.list()).unwrap();
    let release = fs::read(repository.path("Release")).unwrap();
    repository.describe();
    repository.assert_refused(unnamed);

    // A description that names the list, and is not signed at all, or holds it outside of what is signed.
    fs::copy(repository.path("Release"), repository.release()).unwrap();
    repository.assert_refused(unnamed);
    fs::write(repository.path("Release"), &release).unwrap();
    repository.sign_again();
    let outside = [b"SHA256:\n x\n\n".as_slice(), &fs::read(repository.release()).unwrap()].concat();
    fs::write(repository.release(), outside).unwrap();
    repository.assert_refused(unnamed);

    // The chain whole again, and then a key that does not count.
    fs::write(&repository.archive, &archive).unwrap();
    fs::write(repository.list(), &signed).unwrap();
    repository.sign_again();
    assert_eq!(repository.vouch().0.archives.len(), 1);
    let other = Repository::new();
    fs::copy(other.path("keyring.gpg"), repository.path("keyring.gpg")).unwrap();
    repository.assert_refused(unnamed);
}

#[test]
fn what_is_no_archive_is_refused() {
    let repository = Repository::new();
    // Named by a signed list all the same.
    for content in [&b""[..], b"not an archive", &[0xff; 4096]] {
        fs::write(&repository.archive, content).unwrap();
        repository.describe();
        repository.sign_again();
        repository.assert_refused("dpkg-deb");
    }
    fs::remove_file(&repository.archive).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", &repository.archive).unwrap();
    let (vouched, _) = repository.vouch();
    assert_eq!(vouched.refused.len(), 1);
    let nothing = Repositories { lists: Path::new("/nonexistent").to_owned(), ..repository.repositories() };
    nothing.vouch(&[], &mut Builder::default()).unwrap_err();
}

#[test]
fn a_tar_stream_stays_below_its_root() {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, mode) in [("./usr/bin/a", 0o755), ("b", 0o755), ("./c", 0o644)] {
        let mut header = tar::Header::new_ustar();
        header.set_size(4);
        header.set_mode(mode);
        header.set_path(name).unwrap();
        header.set_cksum();
        tar.append(&header, &b"text"[..]).unwrap();
    }
    let mut header = tar::Header::new_ustar();
    header.set_size(4);
    header.set_mode(0o755);
    let name = b"./usr/../../etc/x";
    header.as_mut_bytes()[..name.len()].copy_from_slice(name);
    header.set_cksum();
    tar.append(&header, &b"text"[..]).unwrap();
    let bytes = tar.into_inner().unwrap();
    let mut found = Vec::new();
    read_members(bytes.as_slice(), &mut |path, _| found.push(path.to_vec())).unwrap();
    assert_eq!(found, [b"/usr/bin/a".to_vec(), b"/b".to_vec()]);
    for length in 0..bytes.len().min(3000) {
        drop(read_members(&bytes[..length], &mut |_, _| {}));
    }
}
