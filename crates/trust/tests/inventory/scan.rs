//! What is vouched for, what is not, and what is read again.

use super::*;

#[test]
fn a_shipped_program_is_listed_at_its_real_path() {
    let machine = Machine::new();
    machine.install_program("coreutils", "bin/ls", "#!ls");
    let report = machine.scan();
    assert_eq!((report.packages, report.files, report.vouched, report.hashed), (1, 1, 1, 1));
    assert_eq!(report.started_over.as_deref(), Some("there is no earlier scan"));
    assert_eq!(report.bytes_hashed, 4);
    assert_eq!(machine.places("#!ls"), [b"/usr/bin/ls"]);
    let shipped = packaged("coreutils", Comparison::Same, "#!ls");
    assert_eq!(machine.explain("/bin/ls"), shipped);
    symlink("ls", machine.path("usr/bin/dir")).unwrap();
    assert_eq!(machine.explain("/bin/dir"), shipped);
}

#[test]
fn only_what_can_be_executed_or_loaded_is_listed() {
    let machine = Machine::new();
    let contents = ["\x7fELF lib", "#!script", "with x bit", "data"];
    for (i, text) in contents.iter().enumerate() {
        machine.install_program(&format!("p{i}"), &format!("usr/lib/{i}"), text);
    }
    fs::set_permissions(machine.path("usr/lib/2"), fs::Permissions::from_mode(0o641)).unwrap();
    assert_eq!(machine.scan().vouched, 4);
    assert_eq!(contents.map(|text| machine.places(text).len()), [1, 1, 1, 0]);
}

#[test]
fn large_files_are_read_whole() {
    let machine = Machine::new();
    for (i, size) in [0, 1, 128 * 1024 - 1, 128 * 1024, 128 * 1024 + 1, 1 << 20].into_iter().enumerate() {
        machine.install_program(&format!("p{i}"), &format!("usr/lib/{i}"), &"#!".repeat(size));
    }
    assert_eq!(machine.scan().vouched, 6);
    assert!(machine.is_listed("/usr/lib/5", &"#!".repeat(1 << 20)));
}

#[test]
fn modified_missing_and_replaced_files_are_not_vouched_for() {
    let machine = Machine::new();
    for name in ["good", "modified", "missing", "link", "folder", "pipe"] {
        machine.install_program(name, &format!("usr/bin/{name}"), &format!("#!{name}"));
    }
    machine.write("usr/bin/modified", "#!evil");
    for name in ["missing", "link", "folder", "pipe"] {
        fs::remove_file(machine.path(&format!("usr/bin/{name}"))).unwrap();
    }
    // A link is no file, even if it leads to the right content.
    machine.write("usr/lib/link", "#!link");
    symlink("../lib/link", machine.path("usr/bin/link")).unwrap();
    fs::create_dir(machine.path("usr/bin/folder")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        machine.path("usr/bin/pipe"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    )
    .unwrap();
    machine.install(
        "nowhere",
        "",
        &format!("{}  no/such/folder\n{}  usr/bin/good/below\n", md5(""), md5("")),
    );

    let report = machine.scan();
    let counts = (report.vouched, report.modified, report.missing, report.unreadable);
    assert_eq!(counts, (1, 1, 3, 3));
    assert_eq!(report.modified_executables, [Path::new("/usr/bin/modified")]);
    assert!(report.unreadable_files.iter().all(|file| file.reason == Unreadable::NotRegular));
    assert_eq!(machine.files_in_baseline(), 1);
    assert!(machine.is_listed("/usr/bin/good", "#!good"));
    let modified = packaged("modified", Comparison::Other, "#!evil");
    assert_eq!(machine.explain("/usr/bin/modified"), modified);
    assert_eq!(machine.explain("/usr/lib/link"), Explanation::NotPackaged);
    for (path, reason) in
        [("/usr/bin/missing", "not found"), ("/usr/bin/pipe", "regular"), ("/usr", "regular")]
    {
        let Explanation::Unreadable(said) = machine.explain(path) else { panic!("{path} was read") };
        assert!(said.contains(reason), "{path}: {said}");
    }
}

#[test]
fn a_copy_of_packaged_content_elsewhere_is_not_packaged() {
    let machine = Machine::new();
    machine.install_program("p", "usr/bin/p", "#!p");
    machine.write("usr/lib/p", "#!p");
    machine.scan();
    assert_eq!(machine.explain("/usr/lib/p"), Explanation::NotPackaged);
    assert_eq!(machine.places("#!p"), [b"/usr/bin/p"]);
}

#[test]
fn removed_and_unfinished_packages_vouch_for_nothing() {
    let machine = Machine::new();
    machine.install_program("p", "usr/bin/p", "#!p");
    assert_eq!(machine.scan().vouched, 1);
    for (state, unfinished) in [("deinstall ok config-files", 0), ("install ok half-installed", 1)] {
        machine.write("var/lib/dpkg/status", &format!("Package: p\nStatus: {state}\n"));
        let report = machine.scan();
        assert_eq!((report.packages, report.files, report.unfinished_packages), (0, 0, unfinished));
        assert_eq!(machine.files_in_baseline(), 0);
        assert_eq!(machine.explain("/usr/bin/p"), Explanation::NotPackaged);
    }
}

#[test]
fn packages_of_several_architectures_have_their_own_files() {
    let machine = Machine::new();
    machine.install("libc6:amd64", "Multi-Arch: same\n", &format!("{}  usr/lib/64\n", md5("\x7fELF 64")));
    let status = fs::read_to_string(machine.path("var/lib/dpkg/status")).unwrap();
    machine.write("var/lib/dpkg/status", &(status.clone() + &status.replace("amd64", "i386")));
    machine.write("var/lib/dpkg/info/libc6:i386.md5sums", &format!("{}  usr/lib/32\n", md5("\x7fELF 32")));
    // Of a package that is not installed, and of a name that only starts alike.
    machine.write("var/lib/dpkg/info/libc6:arm64.md5sums", &format!("{}  usr/lib/arm\n", md5("\x7fELF arm")));
    machine.write("var/lib/dpkg/info/libc6.md5sums", &format!("{}  usr/lib/arm\n", md5("\x7fELF arm")));
    for name in ["64", "32", "arm"] {
        machine.write(&format!("usr/lib/{name}"), &format!("\x7fELF {name}"));
    }
    let report = machine.scan();
    assert_eq!((report.packages, report.vouched), (2, 2));
    assert!(
        machine.is_listed("/usr/lib/32", "\x7fELF 32") && !machine.is_listed("/usr/lib/arm", "\x7fELF arm")
    );
    let shipped = packaged("libc6:i386", Comparison::Same, "\x7fELF 32");
    assert_eq!(machine.explain("/usr/lib/32"), shipped);
}

#[test]
fn a_diverted_file_is_looked_for_where_it_lies() {
    let machine = Machine::new();
    // The diversion names the path before the directories were merged, the packages after.
    machine.write("var/lib/dpkg/diversions", "/bin/sh\n/bin/sh.distrib\ndash\n/bin/x\n/usr/lib/x.old\n:\n");
    machine.install_program("bash", "usr/bin/sh", "#!bash");
    fs::rename(machine.path("bin/sh"), machine.path("bin/sh.distrib")).unwrap();
    machine.install_program("dash", "usr/bin/sh", "#!dash");
    machine.install_program("x", "usr/bin/x", "#!x");
    fs::rename(machine.path("bin/x"), machine.path("usr/lib/x.old")).unwrap();
    machine.write("usr/bin/x", "#!local");

    assert_eq!(machine.scan().vouched, 3);
    assert_eq!(machine.places("#!dash"), [b"/usr/bin/sh"]);
    assert_eq!(machine.places("#!bash"), [b"/usr/bin/sh.distrib"]);
    assert_eq!(machine.places("#!x"), [b"/usr/lib/x.old"]);
    assert!(machine.places("#!local").is_empty());
    let by = |package: &str, text| packaged(package, Comparison::Same, text);
    assert_eq!(machine.explain("/bin/sh"), by("dash", "#!dash"));
    assert_eq!(machine.explain("/bin/sh.distrib"), by("bash", "#!bash"));
    assert_eq!(machine.explain("/bin/x"), Explanation::NotPackaged);
}

#[test]
fn configuration_scripts_count_as_shipped() {
    let machine = Machine::new();
    let conffiles = format!(
        "Conffiles:\n /etc/init {}\n /etc/edited {}\n /etc/old {} obsolete\n /etc/new newconffile\n",
        md5("#!init"),
        md5("#!edited"),
        md5("#!old")
    );
    machine.install("p", &conffiles, "");
    for (name, text) in [("init", "#!init"), ("edited", "#!mine"), ("old", "#!old"), ("new", "#!new")] {
        machine.write(&format!("etc/{name}"), text);
    }
    let report = machine.scan();
    assert_eq!((report.files, report.vouched, report.modified), (2, 1, 1));
    assert!(machine.is_listed("/etc/init", "#!init") && machine.files_in_baseline() == 1);
}

#[test]
fn malformed_lines_and_names_vouch_for_nothing() {
    let machine = Machine::new();
    let sum = md5("#!x");
    let lines = [
        format!("{sum}  ../outside"),
        format!("{sum}  usr/bin/x\0"),
        // What md5sum writes for a name with a newline, and what a careless tool writes.
        format!("\\{sum}  usr/bin/new\\nline"),
        format!("{sum}  usr/bin/new\nline"),
        format!("{sum}  {}", "x/".repeat(1 << 20)),
        "rubbish".to_owned(),
        format!("{sum}  usr/bin/x"),
        format!("{}  usr/bin/contradiction\n{sum}  usr/bin/contradiction", md5("other")),
    ];
    machine.install("x", "", &(lines.join("\n") + "\n"));
    machine.write("usr/bin/x", "#!x");
    machine.write("usr/bin/new\nline", "#!x");
    machine.install("../../../x", "", "");
    let report = machine.scan();
    // `usr/bin/new` is a file that is missing; its second line is malformed.
    assert_eq!((report.vouched, report.missing, report.malformed), (1, 2, 9));
    assert_eq!(machine.places("#!x"), [b"/usr/bin/x"]);
}

#[test]
fn names_need_not_be_text() {
    let machine = Machine::new();
    let name = std::ffi::OsStr::from_bytes(b"usr/bin/\xff x");
    fs::write(machine.0.path().join(name), "#!x").unwrap();
    machine.install("x", "", "");
    let line = [md5("#!x").as_bytes(), b"  ", name.as_bytes(), b"\n"].concat();
    fs::write(machine.path("var/lib/dpkg/info/x.md5sums"), line).unwrap();
    assert_eq!(machine.scan().vouched, 1);
    assert_eq!(machine.places("#!x"), [b"/usr/bin/\xff x"]);
}

#[test]
fn a_second_scan_reads_only_what_changed() {
    let machine = Machine::new();
    for name in ["a", "b", "c"] {
        machine.install_program(name, &format!("usr/bin/{name}"), &format!("#!{name}"));
    }
    assert_eq!(machine.scan().hashed, 3);
    let report = machine.scan_settled();
    assert_eq!((report.vouched, report.hashed, report.bytes_hashed), (3, 0, 0));
    assert_eq!(report.started_over, None);
    let inode = fs::metadata(machine.path("state")).unwrap().ino();

    // Nothing new: the state file is left alone.
    machine.scan();
    assert_eq!(fs::metadata(machine.path("state")).unwrap().ino(), inode);
    assert!(!machine.path("state.new").exists());

    machine.install_program("aa", "usr/bin/aa", "#!aa");
    let report = machine.scan();
    assert_eq!((report.vouched, report.hashed), (4, 1));
    machine.scan_settled();

    // The mode changed, hence the ctime.
    fs::set_permissions(machine.path("usr/bin/b"), fs::Permissions::from_mode(0o755)).unwrap();
    assert_eq!(machine.scan().hashed, 1);
    machine.scan_settled();

    // The file is as it was, but its package says otherwise.
    machine.write("var/lib/dpkg/info/c.md5sums", &format!("{}  usr/bin/c\n", md5("#!c2")));
    let report = machine.scan();
    assert_eq!((report.vouched, report.modified, report.hashed), (3, 1, 1));
    assert!(machine.places("#!c").is_empty());
}

#[test]
fn a_rewrite_with_size_and_mtime_restored_is_found() {
    let machine = Machine::new();
    machine.install_program("p", "usr/bin/p", "#!good");
    machine.scan_settled();
    let path = machine.path("usr/bin/p");
    let before = fs::metadata(&path).unwrap();
    machine.write("usr/bin/p", "#!evil");
    File::options().write(true).open(&path).unwrap().set_modified(before.modified().unwrap()).unwrap();
    let after = fs::metadata(&path).unwrap();
    assert_eq!(
        (before.len(), before.ino(), before.mtime_nsec()),
        (after.len(), after.ino(), after.mtime_nsec())
    );
    let report = machine.scan();
    assert_eq!((report.vouched, report.modified), (0, 1));
    assert_eq!(machine.files_in_baseline(), 0);
}

/// Writing and scanning as fast as possible, many changes fall into one tick of the clock that stamps them.
#[test]
fn a_change_within_the_clocks_tick_is_found() {
    let machine = Machine::new();
    machine.install_program("p", "usr/bin/p", "#!good");
    for _ in 0..200 {
        machine.write("usr/bin/p", "#!good");
        assert_eq!(machine.scan().vouched, 1);
        machine.write("usr/bin/p", "#!evil");
        assert_eq!(machine.scan().modified, 1);
    }
}

#[test]
fn a_scan_stops_when_told_and_leaves_the_last_result() {
    let machine = Machine::new();
    for i in 0..20 {
        machine.install_program(&format!("p{i}"), &format!("usr/bin/p{i}"), "#!p");
    }
    machine.scan_settled();
    let good = fs::read(machine.path("state")).unwrap();
    machine.write("usr/bin/p7", "#!new");
    let (stop, mut calls) = (AtomicBool::new(false), 0);
    let stopped = machine.inventory().scan(
        &mut |progress| {
            calls += 1;
            assert_eq!((progress.files_done, progress.files_total), (calls, 20));
            stop.store(calls == 5, Ordering::Relaxed);
        },
        &stop,
    );
    assert!(matches!(stopped, Err(Error::Stopped)) && calls == 5);
    assert_eq!(fs::read(machine.path("state")).unwrap(), good);
    assert_eq!((machine.scan().modified, machine.files_in_baseline()), (1, 19));
}

#[test]
fn without_a_database_or_a_scan_there_is_an_error() {
    let machine = Machine::new();
    assert!(matches!(machine.inventory().write_baseline(&mut Vec::new()), Err(Error::State { .. })));
    fs::remove_file(machine.path("var/lib/dpkg/status")).unwrap();
    let scanned = machine.inventory().scan(&mut |_| {}, &AtomicBool::new(false));
    assert!(matches!(scanned, Err(Error::Database(_))));
    assert!(matches!(machine.inventory().explain(Path::new("/usr")), Err(Error::Database(_))));
    let nowhere = Inventory::new(Machine::new().0.path(), Path::new("/nonexistent/state"));
    assert!(nowhere.scan(&mut |_| {}, &AtomicBool::new(false)).is_err());
}

/// The real database of the machine that runs the tests, where it has one.
#[test]
fn this_machines_own_dpkg_is_explained() {
    if !Path::new("/var/lib/dpkg/info/dpkg.md5sums").exists() {
        return;
    }
    let inventory = Inventory::new(Path::new("/"), Path::new("/nonexistent/state"));
    let explanation = inventory.explain(Path::new("/usr/bin/dpkg")).unwrap();
    assert!(matches!(
        explanation,
        Explanation::Packaged { manager: PackageManager::Dpkg, package, content: Comparison::Same, .. } if package == "dpkg"
    ));
}
