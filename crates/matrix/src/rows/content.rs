//! Rows 33 to 50: changing the file under the check.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use domain::allow_policy::{Effect, Matcher, Rule};
use domain::policy_settings::{Guard, GuardMode};

use crate::gate::digest;
use crate::lab::{Lab, MARKER, give_to_user, helper, payload_bytes, take_marker, write_program};
use crate::row::Expected::{Allowed, Denied, Detected, NotStopped, OutOfReach};
use crate::row::{BOTH, Gap, Got, Row, Tier, Who};
use crate::tries::{Seen, Try};

/// The rows.
pub(super) const ROWS: &[Row] = &[
    Row::fast(33, "a listed program is overwritten in place", overwritten),
    Row::fast(34, "the same size, and the times put back", times_put_back),
    Row::fast(35, "a program is changed while it is executed", while_executed),
    Row::fast(36, "a library is changed that is loaded", loaded_library),
    Row::fast(37, "a descriptor and a mapping to write from before the switch", kept_to_write),
    Row::fast(38, "changes without write: truncate, fallocate", without_write),
    Row::fast(39, "an unlisted program is moved over a listed one", moved_over),
    Row::fast(40, "a listed program by another name", other_name),
    Row::fast(41, "a copy of a packaged program", copied),
    Row::fast(42, "links and folders that are swapped meanwhile", swapped),
    Row::fast(43, "an inode that is used again", inode_again),
    Row::fast(44, "writing to the disk below a filesystem", disk),
    Row::fast(47, "writing into a layer below an overlay", layer),
    Row::fast(48, "a file of 1 TiB", huge),
];

/// All programs that [`changed`] makes are of this size.
const PROGRAM_BYTES: usize = 32 << 10;

/// A static program that marks, with content of its own.
fn program_bytes(name: &str) -> Result<Vec<u8>> {
    let mut bytes = payload_bytes("static")?;
    bytes.extend_from_slice(format!("\n{name}\n").as_bytes());
    ensure!(bytes.len() < PROGRAM_BYTES / 2, "the payload has {} bytes", bytes.len());
    bytes.resize(PROGRAM_BYTES, b'.');
    Ok(bytes)
}

fn listed(path: &Path, bytes: &[u8]) -> Rule {
    Rule {
        id: path.display().to_string(),
        matcher: Matcher::PathSha256(path.as_os_str().as_encoded_bytes().to_vec(), digest(bytes)),
        effect: Effect::Allow,
        comment: String::new(),
    }
}

/// Runs a script as this user.
fn shell(who: Who, script: &str, arguments: &[&Path]) -> Result<()> {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", script, "sh"]).args(arguments).stdin(Stdio::null()).uid(who.id()).gid(who.id());
    let output = command.output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{script}: {} {}", output.status, said.trim().replace('\n', " | "));
    Ok(())
}

/// Whether the program marks.
fn runs(path: &Path, who: Who) -> Result<bool> {
    Try::exec(path).run_now(who)?;
    take_marker()
}

/// Where labels hold, what was written lately is refused once, and read then.
fn runs_soon(path: &Path, who: Who) -> Result<bool> {
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(10) {
        if runs(path, who)? {
            return Ok(true);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(false)
}

/// Each user changes a listed program that runs, by each of these scripts: `$1` is the program, `$2` another one of the
/// same size that is not listed. What `$1` is then must not run.
fn changed(lab: &mut Lab, scripts: &[(&str, &str)]) -> Result<()> {
    let folder = lab.disk()?;
    let mut cases = Vec::new();
    for (name, script) in scripts {
        for who in BOTH {
            let path = who.own(&folder.join(name.replace(' ', "-")));
            let other = path.with_extension("other");
            let bytes = program_bytes(&format!("listed {}", path.display()))?;
            let other_bytes = program_bytes(&format!("unlisted {}", path.display()))?;
            cases.push((who, name, script, path, bytes, other, other_bytes));
        }
    }
    let rules: Vec<_> = cases.iter().map(|(_, _, _, path, bytes, ..)| listed(path, bytes)).collect();
    lab.with_policy(|policy| policy.rules.extend(rules))?;
    for (who, name, script, path, bytes, other, other_bytes) in &cases {
        write_program(path, bytes)?;
        write_program(other, other_bytes)?;
        shell(*who, script, &[path, other])?;
        ensure!(fs::read(path)? != *bytes, "{name}: nothing changed");
        ensure!(runs(path, *who)?, "{name}: what was changed does not run");
        // Either may be a link to the other now.
        for file in [path, other] {
            drop(fs::remove_file(file));
        }
        write_program(path, bytes)?;
        write_program(other, other_bytes)?;
    }
    lab.restrict()?;
    for (who, name, script, path, _, other, _) in &cases {
        let result = changed_while_restricted(lab, *who, script, path, other);
        lab.record(*who, name, Denied, result);
    }
    lab.lift()
}

fn changed_while_restricted(lab: &mut Lab, who: Who, script: &str, path: &Path, other: &Path) -> Result<Got> {
    ensure!(runs_soon(path, who)?, "the listed content does not run");
    shell(who, script, &[path, other])?;
    lab.forget_events()?;
    let ran = runs(path, who)?;
    // Of a symbolic link the event says what it leads to.
    let event = lab.event(who, &Seen::At(fs::canonicalize(path)?), !ran)?.is_some();
    Ok(match (ran, event) {
        (false, true) => Got::Denied,
        (false, false) => Got::DeniedUnseen,
        (true, true) => Got::Detected,
        (true, false) => Got::Ran,
    })
}

fn overwritten(lab: &mut Lab) -> Result<()> {
    changed(
        lab,
        &[("in place", r#"cat "$2" >"$1""#), ("by dd", r#"dd if="$2" of="$1" conv=notrunc 2>/dev/null"#)],
    )
}

fn times_put_back(lab: &mut Lab) -> Result<()> {
    let script = r#"set -e; state() { stat -c "%i %s %y" "$1"; }; before=$(state "$1"); touch -r "$1" "$2.times";
        dd if="$2" of="$1" conv=notrunc 2>/dev/null; touch -r "$2.times" "$1"; test "$before" = "$(state "$1")""#;
    changed(lab, &[("times", script)])
}

fn without_write(lab: &mut Lab) -> Result<()> {
    changed(
        lab,
        &[
            // truncate does not wait for a lease.
            ("shorter", r#"for i in $(seq 50); do truncate -s -5 "$1" && exit; sleep 0.1; done; exit 1"#),
            ("longer", r#"for i in $(seq 50); do truncate -s +5 "$1" && exit; sleep 0.1; done; exit 1"#),
            ("hole", r#"fallocate -p -o 20480 -l 4096 "$1""#),
            ("inserted", r#"fallocate -i -o 20480 -l 4096 "$1""#),
        ],
    )
}

fn moved_over(lab: &mut Lab) -> Result<()> {
    changed(
        lab,
        &[
            ("moved", r#"mv -f "$2" "$1""#),
            ("linked", r#"ln -f "$2" "$1""#),
            ("linked by symlink", r#"ln -sf "$2" "$1.new" && mv "$1.new" "$1""#),
        ],
    )
}

fn inode_again(lab: &mut Lab) -> Result<()> {
    let same = r#"number=$(stat -c %i "$1"); rm "$1"; for i in $(seq 100); do cp "$2" "$1.$i";
        test "$(stat -c %i "$1.$i")" = "$number" && { mv "$1.$i" "$1"; rm -f "$1".*; exit 0; }; done; exit 1"#;
    // The mark of fanotify keeps the inode as long as its verdict counts, so that none can have its number.
    let other = r#"cp "$2" "$1.new"; mv "$1.new" "$1""#;
    let script = if lab.tier() == Tier::T3 { other } else { same };
    changed(lab, &[("the same inode", script)])
}

/// A packaged program that marks when it is told the marker's name.
const TOUCH: &str = "/usr/bin/touch";

fn other_name(lab: &mut Lab) -> Result<()> {
    let folder = lab.disk()?;
    let (touch, interpreter) = (folder.join("touch"), folder.join("calculator"));
    fs::hard_link(TOUCH, &touch)?;
    fs::hard_link(fs::canonicalize("/usr/bin/python3")?, &interpreter)?;
    // Labels are made anew for another policy: the links changed the files.
    lab.with_policy(|policy| policy.rules.push(listed(&touch, b"nothing")))?;
    let code = format!("open({MARKER:?}, 'w')");
    let words = [interpreter.as_os_str(), "-c".as_ref(), code.as_ref()];
    lab.check(&[
        Try::run("a packaged program", [touch.as_os_str(), MARKER.as_ref()], &touch).expect(Allowed),
        Try::run("an interpreter", words, &interpreter).expect(Allowed).on(Tier::T3, Denied),
    ])
}

fn copied(lab: &mut Lab) -> Result<()> {
    let path = lab.disk()?.join("touch");
    let bytes = fs::read(TOUCH)?;
    write_program(&path, &bytes)?;
    let copy = || Try::run("a copy", [path.as_os_str(), MARKER.as_ref()], &path);
    lab.check(&[copy()])?;
    let rule = |effect| Rule {
        id: "by-content".to_owned(),
        matcher: Matcher::Sha256(digest(&bytes)),
        effect,
        comment: String::new(),
    };
    lab.with_policy(|policy| policy.rules.push(rule(Effect::Deny)))?;
    let original = Path::new(TOUCH);
    let name = "a packaged program that a rule denies by its content";
    lab.check(&[copy(), Try::run(name, [TOUCH, MARKER], original)])?;
    lab.with_policy(|policy| policy.rules.push(rule(Effect::Allow)))?;
    lab.restrict()?;
    for who in BOTH {
        // Where labels hold, it is refused once, and read then.
        let start = Instant::now();
        let mut got = Ok(Got::DeniedUnseen);
        while matches!(got, Ok(Got::DeniedUnseen)) && start.elapsed().as_secs() < 10 {
            got = copy()
                .run_now(who)
                .and_then(|()| take_marker())
                .map(|ran| if ran { Got::Ran } else { Got::DeniedUnseen });
            std::thread::sleep(Duration::from_millis(5));
        }
        lab.record(who, "a copy that a rule allows by its content", Allowed, got);
    }
    lab.lift()
}

fn swapped(lab: &mut Lab) -> Result<()> {
    let folder = lab.disk()?;
    let payload = lab.payload("static", &folder.join("payload"))?;
    let (good, bad) = (folder.join("good"), folder.join("bad"));
    symlink("/bin/true", &good)?;
    symlink(&payload, &bad)?;
    let (one, two) = (folder.join("one"), folder.join("two"));
    for place in [&one, &two] {
        fs::create_dir(place)?;
        give_to_user(place, 0o755)?;
    }
    symlink("/bin/true", one.join("program"))?;
    let second = lab.payload("static", &two.join("program"))?;
    let program = one.join("program");
    let swapper = helper("swapper");
    lab.check(&[
        Try::run("links", [&swapper, &good, &bad, &good], &payload),
        Try::run("folders", [&swapper, &one, &two, &program], &second).seen(Seen::Containing("/program")),
    ])
}

/// Where [`Try`] has each user's home.
fn home(who: Who) -> &'static Path {
    Path::new(match who {
        Who::User => "/home/user",
        Who::Root => "/root",
    })
}

/// The helper changes a listed file of each user's home, which it got hold of before the switch.
fn rewritten(how: &str, payload: &str, target: &'static str) -> Result<Try> {
    let bytes = payload_bytes(payload)?;
    let words = [helper("rewriter").into_os_string(), how.into(), target.into()];
    Ok(Try::run(how, words, Path::new(target))
        .before(move |who| write_program(&home(who).join(target), &bytes))
        .seen(Seen::Containing(target))
        .started_before_the_switch())
}

/// The rules for these files of the homes.
fn in_homes(files: &[(&str, &'static str)]) -> Result<Vec<Rule>> {
    let mut rules = Vec::new();
    for (payload, target) in files {
        let bytes = payload_bytes(payload)?;
        rules.extend(BOTH.map(|who| listed(&home(who).join(target), &bytes)));
    }
    Ok(rules)
}

fn while_executed(lab: &mut Lab) -> Result<()> {
    let rules = in_homes(&[("quiet", "row-35-program")])?;
    lab.with_policy(|policy| policy.rules.extend(rules))?;
    lab.check(&[rewritten("toggle", "quiet", "row-35-program")?])
}

fn loaded_library(lab: &mut Lab) -> Result<()> {
    let rules = in_homes(&[("plugin", "row-36-library.so")])?;
    lab.with_policy(|policy| policy.rules.extend(rules.clone()))?;
    // The event is about the writing.
    let library = || -> Result<Try> {
        Ok(rewritten("library", "plugin", "row-36-library.so")?.seen(Seen::Cause("guard")))
    };
    lab.check(&[library()?.expect(Detected).on(Tier::T3, NotStopped(Gap::Mappings))])?;
    if lab.tier() == Tier::T3 {
        return Ok(());
    }
    lab.with_policy(|policy| {
        policy.rules.extend(rules);
        policy.settings.guards.set(Guard::WriteLabelled, GuardMode::Enforce);
    })?;
    lab.check(&[library()?])
}

fn kept_to_write(lab: &mut Lab) -> Result<()> {
    let files = [("quiet", "row-37-descriptor"), ("quiet", "row-37-mapping"), ("quiet", "row-37-kept")];
    let rules = in_homes(&files)?;
    lab.with_policy(|policy| policy.rules.extend(rules))?;
    lab.check(&[
        rewritten("descriptor", "quiet", "row-37-descriptor")?,
        rewritten("mapping", "quiet", "row-37-mapping")?,
        // The kernel executes nothing that somebody may write to.
        rewritten("mapping-kept", "quiet", "row-37-kept")?.expect(OutOfReach),
    ])
}

/// Runs a program as root, which must end well.
fn root(words: &[&str]) -> Result<()> {
    let (program, arguments) = words.split_first().context("no words")?;
    let output =
        Command::new(program).args(arguments).stdin(Stdio::null()).output().context((*program).to_owned())?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}: {} {}", words.join(" "), output.status, said.trim());
    Ok(())
}

fn disk(lab: &mut Lab) -> Result<()> {
    root(&["/sbin/modprobe", "loop"])?;
    let folder = lab.disk()?;
    let (image, mounted) = (folder.join("image"), folder.join("mounted"));
    fs::create_dir(&mounted)?;
    let program = mounted.join("program");
    let bytes = payload_bytes("quiet")?;
    let rule = listed(&program, &bytes);
    lab.with_policy(|policy| policy.rules.push(rule))?;
    let device = "/dev/loop0";
    let make = {
        let (image, mounted, program) = (image.clone(), mounted.clone(), program.clone());
        move |_: Who| {
            if image.exists() {
                take_down(&mounted, device)?;
                fs::remove_file(&image)?;
            }
            File::create(&image)?.set_len(16 << 20)?;
            let (image, mounted) = (image.display().to_string(), mounted.display().to_string());
            root(&["/sbin/mke2fs", "-q", "-t", "ext4", &image])?;
            root(&["/sbin/losetup", device, &image])?;
            root(&["/bin/mount", "-t", "ext4", device, &mounted])?;
            write_program(&program, &bytes)?;
            nix::unistd::sync();
            Ok(())
        }
    };
    let below = |name: &str, place: &Path| {
        let words = [helper("rewriter").into_os_string(), "below".into(), (&program).into(), place.into()];
        Try::run(name, words, place).needs_root().started_before_the_switch()
    };
    lab.check(&[below("the device", Path::new(device)).before(make.clone()).by_on(
        Who::Root,
        Tier::T3,
        NotStopped(Gap::Disks),
    )])?;
    lab.check(&[below("the file below a loop device", &image)
        .before(make.clone())
        .by(Who::Root, NotStopped(Gap::Disks))])?;
    take_down(&mounted, device)
}

/// Unmounts, and frees the device, as soon as nobody reads there.
fn take_down(mounted: &Path, device: &str) -> Result<()> {
    let start = Instant::now();
    while let Err(error) = nix::mount::umount(mounted) {
        ensure!(start.elapsed() < Duration::from_secs(10), "{}: {error}", mounted.display());
        std::thread::sleep(Duration::from_millis(10));
    }
    root(&["/sbin/losetup", "-d", device])?;
    while fs::read("/sys/block/loop0/loop/backing_file").is_ok() {
        ensure!(start.elapsed() < Duration::from_secs(10), "{device} stays in use");
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

fn layer(lab: &mut Lab) -> Result<()> {
    root(&["/sbin/modprobe", "overlay"])?;
    let folder = lab.disk()?;
    let [lower, upper, work, merged] = ["lower", "upper", "work", "merged"].map(|name| folder.join(name));
    for place in [&lower, &upper, &work, &merged] {
        fs::create_dir(place)?;
    }
    let bytes = payload_bytes("quiet")?;
    for who in BOTH {
        write_program(&who.own(&lower.join("program")), &bytes)?;
    }
    let options =
        format!("lowerdir={},upperdir={},workdir={}", lower.display(), upper.display(), work.display());
    let place = merged.display().to_string();
    root(&["/bin/mount", "-t", "overlay", "overlay", "-o", &options, &place])?;
    let rules = BOTH.map(|who| listed(&who.own(&merged.join("program")), &bytes));
    lab.with_policy(|policy| policy.rules.extend(rules))?;
    let script = r#"exec "$0" below "$1-$(id -un)" "$2-$(id -un)""#;
    let arguments = [helper("rewriter"), merged.join("program"), lower.join("program")];
    let words = [Path::new("/bin/sh"), Path::new("-c"), Path::new(script)];
    let words = words.into_iter().chain(arguments.iter().map(PathBuf::as_path));
    let lower_program = lower.join("program");
    lab.check(&[Try::run("below", words, &merged)
        .before(move |who| write_program(&who.own(&lower_program), &bytes))
        .seen(Seen::Containing("merged/program"))
        .started_before_the_switch()
        .on(Tier::T3, NotStopped(Gap::Layers))])?;
    nix::mount::umount2(&merged, nix::mount::MntFlags::MNT_DETACH)?;
    Ok(())
}

fn huge(lab: &mut Lab) -> Result<()> {
    let path = lab.disk()?.join("payload");
    lab.payload("static", &path)?;
    File::options().write(true).open(&path)?.set_len(1 << 40)?;
    lab.check(&[Try::exec(&path)])?;
    let listed = helper("mark");
    let many = |who| -> Result<Duration> {
        let start = Instant::now();
        for _ in 0..50 {
            ensure!(runs(&listed, who)?, "a listed program does not run");
        }
        Ok(start.elapsed())
    };
    lab.restrict()?;
    for who in BOTH {
        let alone = many(who)?;
        let mut child = Command::new("/bin/sh");
        child.args(["-c", "while :; do \"$0\"; done"]).arg(&path).stdin(Stdio::null()).stderr(Stdio::null());
        let mut child = child.uid(who.id()).gid(who.id()).spawn()?;
        let meanwhile = many(who);
        child.kill()?;
        child.wait()?;
        let got = meanwhile.and_then(|meanwhile| {
            ensure!(meanwhile < alone * 10, "{meanwhile:?} in place of {alone:?}");
            Ok(Got::Ran)
        });
        lab.record(who, "listed programs meanwhile", Allowed, got);
    }
    lab.lift()
}
