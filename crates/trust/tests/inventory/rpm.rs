//! The databases that rpm itself writes, and damaged ones.

use std::process::Command;
use std::sync::LazyLock;

use super::*;
use trust::Shipped;
use trust::rpm::{Blobs, Header, Ndb, Sqlite};

/// A database of rpm 4.18's own code for this format, which Debian's rpm is built without: `trial-1-1.noarch` twice,
/// and what is left of a third that was removed.
const NDB: &[u8] = include_bytes!("Packages.db");

const SQLITE: &str = "var/lib/rpm/rpmdb.sqlite";

/// Packages of one run of rpmbuild: `trial`, `trial-many` with 300 files, `trial-0` to `trial-59`, and `trial` once more
/// with MD5 digests.
struct Packages(tempfile::TempDir);

static PACKAGES: LazyLock<Packages> = LazyLock::new(|| {
    let folder = Packages(tempfile::tempdir().unwrap());
    let mut spec = "Name: trial\nVersion: 1\nRelease: 1\nSummary: -\nLicense: -\nBuildArch: noarch\nAutoReqProv: no\n\
                    %description\n-\n%install\nmkdir -p %{buildroot}/usr/bin %{buildroot}/usr/lib/many %{buildroot}/etc\n\
                    printf '#!trial' > %{buildroot}/usr/bin/trial\nprintf a=1 > %{buildroot}/etc/trial.conf\n\
                    chmod 755 %{buildroot}/usr/bin/trial\nln -s trial %{buildroot}/usr/bin/link\n\
                    touch %{buildroot}/usr/lib/ghost\n\
                    for i in $(seq 300); do printf \"#!many $i\" > %{buildroot}/usr/lib/many/$i; done\n\
                    for i in $(seq 0 59); do printf \"#!$i\" > %{buildroot}/usr/bin/trial-$i; done\n\
                    %files\n/usr/bin/trial\n/usr/bin/link\n%config /etc/trial.conf\n%ghost /usr/lib/ghost\n"
        .to_owned();
    let packages = [("many".to_owned(), "/usr/lib/many".to_owned())].into_iter();
    for (name, files) in packages.chain((0..60).map(|i| (i.to_string(), format!("/usr/bin/trial-{i}")))) {
        spec += &format!("%package {name}\nSummary: -\n%description {name}\n-\n%files {name}\n{files}\n");
    }
    fs::write(folder.0.path().join("trial.spec"), spec).unwrap();
    folder.build("sha256", "8");
    folder.build("md5", "1");
    folder
});

impl Packages {
    fn build(&self, folder: &str, algorithm: &str) {
        let top = self.0.path().join(folder);
        let define = |name: &str, value: &str| format!("{name} {value}");
        let mut command = Command::new("rpmbuild");
        command.args(["-bb", "--quiet", "--define", &define("_topdir", top.to_str().unwrap())]);
        command.args(["--define", &define("_binary_filedigest_algorithm", algorithm)]);
        command.args(["--define", "_binary_payload w0.ufdio", "--define", "_buildhost builder"]);
        run(command.arg(self.0.path().join("trial.spec")));
    }

    fn path(&self, folder: &str, package: &str) -> PathBuf {
        self.0.path().join(folder).join("RPMS/noarch").join(format!("{package}-1-1.noarch.rpm"))
    }
}

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

impl Machine {
    fn rpm(&self, arguments: &[&str]) -> String {
        // Not the database of whoever runs the tests.
        let mut command = Command::new("rpm");
        command.arg("--root").arg(self.0.path()).args(["--dbpath", "/var/lib/rpm"]);
        run(command.args(arguments))
    }

    /// A machine whose only packages are rpm's.
    fn of_rpm(folder: &str, packages: &[&str]) -> Self {
        let machine = Self::new();
        fs::remove_file(machine.path("var/lib/dpkg/status")).unwrap();
        let files =
            packages.iter().map(|package| PACKAGES.path(folder, package).to_str().unwrap().to_owned());
        let files: Vec<_> = files.collect();
        let arguments: Vec<&str> =
            ["-i", "--nodeps"].into_iter().chain(files.iter().map(String::as_str)).collect();
        machine.rpm(&arguments);
        machine
    }
}

fn by_rpm(package: &str, content: Comparison, text: &str) -> Explanation {
    let (manager, package) = (PackageManager::Rpm, package.to_owned());
    Explanation::Packaged { manager, package, content, sha256: sha256(text) }
}

type Listed = (Vec<(Vec<u8>, Shipped)>, u64);

/// What the headers list, and how many of them, or of their files, are malformed.
fn list(blobs: &impl Blobs) -> std::io::Result<Listed> {
    let mut files = Vec::new();
    let mut malformed = 0;
    for number in 0..blobs.count() {
        let blob = blobs.blob(number)?;
        let header = Header::read(&blob).and_then(|header| {
            header.package()?;
            header.list_files(&mut |path, shipped| files.push((path.to_vec(), shipped)))
        });
        malformed += header.unwrap_or(1);
    }
    Ok((files, malformed))
}

#[test]
fn what_rpm_installed_is_vouched_for_and_what_was_changed_is_not() {
    let machine = Machine::of_rpm("sha256", &["trial", "trial-7"]);
    let report = machine.scan();
    assert_eq!((report.packages, report.files, report.vouched, report.malformed), (2, 3, 3, 0));
    assert_eq!(machine.places("#!trial"), [b"/usr/bin/trial"]);
    assert_eq!(machine.files_in_baseline(), 2, "configuration cannot be executed");
    assert_eq!(machine.explain("/bin/trial"), by_rpm("trial-1-1.noarch", Comparison::Same, "#!trial"));
    assert_eq!(machine.explain("/usr/bin/link"), by_rpm("trial-1-1.noarch", Comparison::Same, "#!trial"));

    machine.scan_settled();
    machine.write("usr/bin/trial-7", "#!evil");
    fs::copy(machine.path("usr/bin/trial"), machine.path("usr/bin/copy")).unwrap();
    machine.write("usr/lib/ghost", "#!ghost");
    let report = machine.scan();
    assert_eq!((report.hashed, report.vouched, report.modified), (1, 2, 1));
    assert_eq!(report.modified_executables, [Path::new("/usr/bin/trial-7")]);
    assert!(!machine.is_listed("/usr/bin/trial-7", "#!evil") && machine.places("#!trial").len() == 1);
    assert_eq!(
        machine.explain("/usr/bin/trial-7"),
        by_rpm("trial-7-1-1.noarch", Comparison::Other, "#!evil")
    );
    for path in ["/usr/bin/copy", "/usr/lib/ghost"] {
        assert_eq!(machine.explain(path), Explanation::NotPackaged, "{path}");
    }

    machine.rpm(&["-e", "trial"]);
    machine.write("usr/bin/trial", "#!trial");
    assert_eq!(
        (machine.scan().packages, machine.places("#!trial").len()),
        (1, 0),
        "no package has it any more"
    );
}

/// Long rows and a tree of several levels: everything that rpm says is read, and nothing else.
#[test]
fn a_larger_database_says_the_same_as_rpm() {
    let names: Vec<_> = (0..60).map(|i| format!("trial-{i}")).chain(["trial-many".to_owned()]).collect();
    let machine = Machine::of_rpm("sha256", &names.iter().map(String::as_str).collect::<Vec<_>>());
    let query = "[%{FILENAMES} %{FILEDIGESTS}\n]";
    let mut expected: Vec<_> = machine.rpm(&["-qa", "--qf", query]).lines().map(str::to_owned).collect();
    // Folders have no digest.
    expected.retain(|line| !line.ends_with(' '));
    expected.sort();
    let database = fs::read(machine.path(SQLITE)).unwrap();
    let (files, malformed) = list(&Sqlite::open(database.as_slice(), None).unwrap()).unwrap();
    let text = |(path, shipped): &(Vec<u8>, Shipped)| {
        let Shipped::Sha256(digest) = shipped else { panic!("{shipped:?}") };
        format!("{} {digest}", String::from_utf8_lossy(path))
    };
    let mut read: Vec<_> = files.iter().map(text).collect();
    read.sort();
    assert_eq!((read.len(), malformed), (360, 0));
    assert_eq!(read, expected);
    let report = machine.scan();
    assert_eq!((report.packages, report.files, report.vouched), (61, 360, 360));
}

/// A digest that can be forged is no reason to believe a file, even when it fits.
#[test]
fn md5_only_never_vouches() {
    let machine = Machine::of_rpm("md5", &["trial"]);
    let report = machine.scan();
    assert_eq!((report.packages, report.files, report.weak, report.malformed), (1, 0, 2, 0));
    assert_eq!(machine.files_in_baseline(), 0);
    assert_eq!(machine.explain("/usr/bin/trial"), by_rpm("trial-1-1.noarch", Comparison::Unknown, "#!trial"));
}

#[test]
fn dpkg_and_rpm_share_a_machine() {
    let machine = Machine::of_rpm("sha256", &["trial"]);
    machine.write("var/lib/dpkg/status", "");
    machine.install_program("coreutils", "usr/bin/ls", "#!ls");
    let report = machine.scan();
    assert_eq!((report.packages, report.vouched), (2, 3));
    assert!(machine.is_listed("/usr/bin/ls", "#!ls") && machine.is_listed("/usr/bin/trial", "#!trial"));
    assert_eq!(machine.explain("/usr/bin/ls"), packaged("coreutils", Comparison::Same, "#!ls"));
    machine.scan_settled();
    assert_eq!(machine.scan().hashed, 0);
    // Where one folder is a link to the other, as on openSUSE, the database is still one.
    fs::create_dir_all(machine.path("usr/lib/sysimage")).unwrap();
    symlink("/var/lib/rpm", machine.path("usr/lib/sysimage/rpm")).unwrap();
    assert_eq!(machine.scan().packages, 2);
}

#[test]
fn the_database_of_opensuse_is_read() {
    let machine = Machine::new();
    fs::create_dir_all(machine.path("usr/lib/sysimage/rpm")).unwrap();
    fs::write(machine.path("usr/lib/sysimage/rpm/Packages.db"), NDB).unwrap();
    machine.write("usr/bin/trial", "#!trial");
    let report = machine.scan();
    assert_eq!(
        (report.packages, report.vouched, report.missing),
        (2, 2, 2),
        "installed twice, without its configuration"
    );
    assert_eq!(machine.places("#!trial"), [b"/usr/bin/trial"]);
    assert_eq!(machine.explain("/usr/bin/trial"), by_rpm("trial-1-1.noarch", Comparison::Same, "#!trial"));
}

/// Runs statements on a database and dies, so that what was committed is still in the log only.
fn die_after(database: &Path, statements: &str) {
    let program = "import os, sqlite3, sys\nc = sqlite3.connect(sys.argv[1], isolation_level=None)\n\
                   c.execute('pragma wal_autocheckpoint=0')\n\
                   for s in sys.argv[2].split(';'): c.execute(s)\nos._exit(0)";
    run(Command::new("/usr/bin/python3").args(["-c", program]).arg(database).arg(statements));
}

#[test]
fn what_is_committed_to_the_log_counts_and_what_is_not_does_not() {
    let machine = Machine::of_rpm("sha256", &["trial", "trial-1", "trial-many"]);
    let database = machine.path(SQLITE);
    assert_eq!(machine.scan().packages, 3);
    let without = "delete from Packages where hnum = 1";
    die_after(&database, &format!("{without};begin;delete from Packages"));
    let log = machine.path("var/lib/rpm/rpmdb.sqlite-wal");
    let whole = fs::read(&log).unwrap();
    assert!(whole.len() > 4096, "the log is gone");
    assert_eq!(machine.scan().packages, 2);
    // A log that breaks off, or is damaged, counts as far as it is whole.
    let mut flipped = whole.clone();
    flipped[100] ^= 1;
    for bytes in [&whole[..whole.len() - 1], &whole[..20], &flipped] {
        fs::write(&log, bytes).unwrap();
        assert_eq!(machine.scan().packages, 3);
    }
    // What rpm says when it has put it in order.
    fs::write(&log, &whole).unwrap();
    assert_eq!(machine.rpm(&["-qa"]).lines().count(), 2);
}

#[test]
fn an_unfinished_transaction_is_an_error_and_the_scan_before_stays() {
    let machine = Machine::of_rpm("sha256", &["trial"]);
    machine.scan();
    let baseline = machine.baseline();
    let journal = machine.path("var/lib/rpm/rpmdb.sqlite-journal");
    fs::write(&journal, [0xd9, 0xd5, 0x05, 0xf9, 0x20, 0xa1, 0x63, 0xd7, 0, 0]).unwrap();
    let scan = || machine.inventory().scan(&mut |_| {}, &AtomicBool::new(false));
    let Err(Error::Database(error)) = scan() else { panic!("scanned") };
    assert_eq!(error.source.to_string(), "a transaction is not finished");
    assert_eq!(machine.baseline(), baseline);
    // One that was ended leaves its journal without a beginning.
    fs::write(&journal, [0; 64]).unwrap();
    assert_eq!(machine.scan().packages, 1);
}

#[test]
fn a_database_that_changes_meanwhile_is_an_error() {
    let machine = Machine::of_rpm("sha256", &["trial"]);
    let mut touched = false;
    let scanned = machine.inventory().scan(
        &mut |_| {
            if !std::mem::replace(&mut touched, true) {
                machine.rpm(&["-e", "trial"]);
            }
        },
        &AtomicBool::new(false),
    );
    assert!(matches!(scanned, Err(Error::Database(_))) && touched);
}

#[test]
fn berkeley_db_is_named() {
    let machine = Machine::new();
    fs::create_dir_all(machine.path("var/lib/rpm")).unwrap();
    machine.write("var/lib/rpm/Packages", "\0\0\0\0");
    assert_eq!(machine.scan().unsupported, [machine.path("var/lib/rpm/Packages")]);
}

/// Cut anywhere, flipped anywhere: no panic, no endless loop, and no file that the whole database does not list. What
/// differs is a path or a digest that was itself flipped.
#[test]
fn damage_is_an_error_or_lists_less() {
    let machine = Machine::of_rpm("sha256", &["trial", "trial-1", "trial-many"]);
    die_after(&machine.path(SQLITE), "update Packages set blob = blob where hnum = 2");
    let database = fs::read(machine.path(SQLITE)).unwrap();
    let log = fs::read(machine.path("var/lib/rpm/rpmdb.sqlite-wal")).unwrap();
    let of_sqlite =
        |database: &[u8], log: &[u8]| Sqlite::open(database, Some(log)).and_then(|read| list(&read));
    let of_ndb = |bytes: &[u8]| Ndb::open(bytes).and_then(|read| list(&read));
    let whole = of_sqlite(&database, &log).unwrap().0;
    assert_eq!(whole.len(), 303);
    let check = |read: std::io::Result<Listed>, whole: &[(Vec<u8>, Shipped)], what: &str, at: usize| {
        let Ok((files, _)) = read else { return };
        let new: Vec<_> = files.iter().filter(|file| !whole.contains(file)).collect();
        let parts = |file: &(Vec<u8>, Shipped)| {
            whole.iter().any(|(path, shipped)| *path == file.0 || *shipped == file.1)
        };
        assert!(new.len() <= 1 || new.iter().all(|file| parts(file)), "{what} at {at}: {new:?}");
    };
    for at in (0..database.len()).step_by(61) {
        let mut flipped = database.clone();
        flipped[at] ^= 1 << (at % 8);
        check(of_sqlite(&flipped, &log), &whole, "flipped", at);
        check(of_sqlite(&database[..at], &log), &whole, "cut", at);
    }
    for at in (0..100).chain(4096..4200) {
        for value in [0, 1, 0x7f, 0xff] {
            let mut changed = database.clone();
            changed[at] = value;
            check(of_sqlite(&changed, &[]), &whole, "changed", at);
        }
    }
    for at in (0..log.len()).step_by(29) {
        let mut flipped = log.clone();
        flipped[at] ^= 1 << (at % 8);
        check(of_sqlite(&database, &flipped), &whole, "flipped in the log", at);
        check(of_sqlite(&database, &log[..at]), &whole, "log cut", at);
    }
    let whole = of_ndb(NDB).unwrap().0;
    assert_eq!(whole.len(), 4);
    for at in 0..NDB.len() {
        let mut flipped = NDB.to_vec();
        flipped[at] ^= 1 << (at % 8);
        // All of it has a checksum.
        if let Ok((files, _)) = of_ndb(&flipped) {
            assert!(files.iter().all(|file| whole.contains(file)), "flipped at {at}");
        }
        assert!(of_ndb(&NDB[..at]).is_err(), "cut at {at}");
    }
}

/// Small databases that would be large, deep or without end.
#[test]
fn enormous_and_recursive_databases_end() {
    let machine = Machine::of_rpm("sha256", &["trial", "trial-many"]);
    let good = fs::read(machine.path(SQLITE)).unwrap();
    let root = 4096;
    let (leaf, interior) = (13, 5);
    // A tree that leads back to itself.
    let mut circle = good.clone();
    circle[root..root + 14].copy_from_slice(&[interior, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 2, 0x0f, 0xf0]);
    circle[root + 0xff0..root + 0xff4].copy_from_slice(&2_u32.to_be_bytes());
    // Rows that all are as long as the database.
    let mut long = good.clone();
    long[root..root + 8].copy_from_slice(&[leaf, 0, 0, 3, 0xe8, 0, 0, 0]);
    for cell in 0..1000 {
        long[root + 8 + cell * 2..root + 10 + cell * 2].copy_from_slice(&[0x0f, 0xf0]);
    }
    long[root + 0xff0..root + 0xff4].copy_from_slice(&[0x84, 0x80, 0, 1]);
    for (bytes, message) in
        [(circle, "a tree that is too deep"), (long, "rows that are longer than the database")]
    {
        assert_eq!(Sqlite::open(bytes.as_slice(), None).unwrap_err().to_string(), message);
    }
    // Slots that share their blocks, or lie behind the end.
    for (at, value) in
        [(0x48, 0x0101_u32), (0x28, 1), (0x2c, 0xffff), (0x2c, 0), (0x0c, u32::MAX), (0x0c, 0), (4, 1)]
    {
        let mut bytes = NDB.to_vec();
        bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        assert!(Ndb::open(bytes.as_slice()).is_err(), "{at}");
    }
}
