//! Scans of a machine that each test builds: a directory with package databases and the files that they list.
#![cfg(test)]

use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use domain::digest::Sha256Digest;
use md5::{Digest as _, Md5};
use policy::baseline::Baseline;
use sha2::Sha256;
use trust::{Comparison, Error, Explanation, Inventory, PackageManager, ScanReport, Unreadable};

mod apt;
mod damage;
mod rpm;
mod scan;

fn md5(text: &str) -> String {
    hex::encode(Md5::digest(text))
}

fn sha256(text: &str) -> Sha256Digest {
    Sha256Digest(Sha256::digest(text).into())
}

/// A file of one of dpkg's packages.
fn packaged(package: &str, content: Comparison, text: &str) -> Explanation {
    let (manager, package) = (PackageManager::Dpkg, package.to_owned());
    Explanation::Packaged { manager, package, content, sha256: sha256(text) }
}

/// A machine with merged `/usr`.
struct Machine(tempfile::TempDir);

impl Machine {
    fn new() -> Self {
        let machine = Self(tempfile::tempdir().unwrap());
        for folder in ["usr/bin", "usr/lib", "etc", "var/lib/dpkg/info"] {
            fs::create_dir_all(machine.path(folder)).unwrap();
        }
        symlink("usr/bin", machine.path("bin")).unwrap();
        machine.write("var/lib/dpkg/status", "");
        machine
    }

    fn path(&self, path: &str) -> PathBuf {
        self.0.path().join(path)
    }

    fn write(&self, path: &str, text: &str) {
        fs::write(self.path(path), text).unwrap();
    }

    /// Adds a stanza for an installed package; `fields` may hold more of it.
    fn install(&self, key: &str, fields: &str, md5sums: &str) {
        let status = fs::read_to_string(self.path("var/lib/dpkg/status")).unwrap();
        let name = key.split(':').next().unwrap();
        let stanza =
            format!("Package: {name}\nStatus: install ok installed\nArchitecture: amd64\n{fields}\n");
        self.write("var/lib/dpkg/status", &(status + &stanza));
        self.write(&format!("var/lib/dpkg/info/{key}.md5sums"), md5sums);
    }

    /// Installs a package of one program.
    fn install_program(&self, package: &str, path: &str, text: &str) {
        self.install(package, "", &format!("{}  {path}\n", md5(text)));
        self.write(path, text);
    }

    fn inventory(&self) -> Inventory {
        Inventory::new(self.0.path(), &self.path("state"))
    }

    fn scan(&self) -> ScanReport {
        let report = self.inventory().scan(&mut |_| {}, &AtomicBool::new(false)).unwrap();
        assert_eq!(report.files, report.vouched + report.modified + report.unreadable + report.missing);
        report
    }

    /// Scans until everything that was written before is too old to change unnoticed, so that the next scan has no
    /// reason to read a file twice.
    fn scan_settled(&self) -> ScanReport {
        let give_up = Instant::now() + Duration::from_secs(10);
        loop {
            let report = self.scan();
            if report.hashed == 0 {
                return report;
            }
            assert!(Instant::now() < give_up, "files never settle");
        }
    }

    /// Whether the baseline of the last scan lists this content at this path.
    fn is_listed(&self, path: &str, text: &str) -> bool {
        self.places(text).iter().any(|place| place == path.as_bytes())
    }

    fn places(&self, text: &str) -> Vec<Vec<u8>> {
        let bytes = self.baseline();
        let baseline = Baseline::open(bytes.as_slice()).unwrap();
        baseline.verify().unwrap();
        baseline.places(&sha256(text)).unwrap()
    }

    fn baseline(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.inventory().write_baseline(&mut bytes).unwrap();
        bytes
    }

    fn files_in_baseline(&self) -> u64 {
        Baseline::open(self.baseline().as_slice()).unwrap().files()
    }

    fn explain(&self, path: &str) -> Explanation {
        self.inventory().explain(Path::new(path)).unwrap()
    }
}
