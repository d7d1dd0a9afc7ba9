//! Rows 21 to 32: interpreters, and living off the land.

use std::fs;
use std::io::Write as _;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use domain::allow_policy::{Effect, Matcher, Rule};
use domain::policy_settings::{DualUse, Interpreters};

use crate::gate::digest;
use crate::lab::{Lab, MARKER, give_to_user, helper, write_program};
use crate::row::Expected::{Allowed, Denied, NotStopped, OutOfReach};
use crate::row::{BOTH, Expected, Gap, Row, Tier, Who};
use crate::tries::{Seen, Try};

/// The rows.
pub(super) const ROWS: &[Row] = &[
    Row::fast(21, "a script is executed", script),
    Row::fast(22, "interpreters that are scripts", chain),
    Row::fast(23, "a shell is given a script", shell),
    Row::fast(24, "another interpreter is given a script", interpreter),
    Row::fast(25, "code on a command line", one_liners),
    Row::fast(26, "code from a pipe or a connection", piped),
    Row::fast(28, "bytecode", bytecode),
    Row::fast(29, "programs that start others", starters),
    Row::fast(31, "formats that are registered with binfmt_misc", formats),
    Row::fast(32, "a host of macros", macros),
];

/// What a script of a shell marks by.
const MARK: &str = ": > /run/cordon-marker/ran";

/// Runs a command as root, and holds that it ended well.
fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?} ended with {}: {}", output.status, said.trim());
    Ok(())
}

/// A rule that lists what the file is at its place.
fn listed(path: &Path) -> Result<Rule> {
    let bytes = fs::read(path).with_context(|| path.display().to_string())?;
    Ok(Rule {
        id: format!("listed-{}", path.display()),
        matcher: Matcher::PathSha256(path.as_os_str().as_encoded_bytes().to_vec(), digest(&bytes)),
        effect: Effect::Allow,
        comment: String::new(),
    })
}

fn script(lab: &mut Lab) -> Result<()> {
    let folder = lab.disk()?;
    let mut tries = Vec::new();
    for (name, interpreter, text) in [
        ("sh", "/bin/sh", MARK.to_owned()),
        ("bash", "/usr/bin/env bash", MARK.to_owned()),
        ("python", "/usr/bin/python3", PYTHON.to_owned()),
        ("env-python", "/usr/bin/env python3", PYTHON.to_owned()),
        ("perl", "/usr/bin/perl", PERL.to_owned()),
        ("awk", "/usr/bin/awk -f", AWK.to_owned()),
    ] {
        let path = folder.join(name);
        lab.program(&path, &format!("#!{interpreter}\n{text}"))?;
        tries.push(Try::exec(&path));
    }
    lab.check(&tries)
}

/// The kernel follows five scripts, and not a sixth.
const DEPTH_MAX: usize = 5;

/// Scripts of which each is the interpreter of the one before; the last one's is the shell, which runs it.
fn write_chain(folder: &Path, depth: usize) -> Result<Vec<PathBuf>> {
    let paths: Vec<_> = (1..=depth).map(|number| folder.join(format!("script-{number}"))).collect();
    for (place, path) in paths.iter().enumerate() {
        let interpreter = paths.get(place + 1).map_or(Path::new("/bin/sh"), PathBuf::as_path);
        write_program(path, format!("#!{}\n{MARK}\n", interpreter.display()).as_bytes())?;
    }
    Ok(paths)
}

fn chain(lab: &mut Lab) -> Result<()> {
    let mut tries = Vec::new();
    let mut rules = Vec::new();
    for depth in 1..=DEPTH_MAX + 1 {
        for unlisted in 0..=depth {
            let folder = lab.disk()?;
            let paths = write_chain(&folder, depth)?;
            for (_, path) in paths.iter().enumerate().filter(|(place, _)| place + 1 != unlisted) {
                rules.push(listed(path)?);
            }
            let first = paths.first().context("a chain of none")?;
            let about = paths.get(unlisted.saturating_sub(1)).context("no such place")?;
            let name = format!("{depth} scripts, unlisted is {unlisted}");
            let expected = match (depth > DEPTH_MAX, unlisted) {
                (true, _) => OutOfReach,
                (false, 0) => Allowed,
                (false, _) => Denied,
            };
            tries.push(Try::run(&name, [first], about).expect(expected));
        }
    }
    lab.with_policy(|policy| policy.rules.extend(rules))?;
    lab.check(&tries)
}

/// What is expected of an interpreter's start: at T3 as said, elsewhere it is as at the level `open`.
fn by_level(one: Try, at_t3: Expected) -> Try {
    one.seen(Seen::Cause("interpreter"))
        .on(Tier::T1, NotStopped(Gap::Interpreters))
        .on(Tier::T2, NotStopped(Gap::Interpreters))
        .on(Tier::T3, at_t3)
}

fn at_level(lab: &mut Lab, level: Interpreters, tries: &[Try]) -> Result<()> {
    lab.with_policy(|policy| policy.settings.interpreters = level)?;
    lab.check(tries)
}

fn shell(lab: &mut Lab) -> Result<()> {
    let path = lab.disk()?.join("script");
    lab.program(&path, MARK)?;
    let text = path.display();
    let tries = |strict: Expected| {
        let shells = [
            Try::run("bash FILE", ["/bin/bash".as_ref(), path.as_os_str()], &path),
            Try::run("sh FILE", ["/bin/sh".as_ref(), path.as_os_str()], &path),
            Try::run("bash -c", ["/bin/bash", "-c", &format!(". {text}")], &path),
            Try::run("busybox sh FILE", ["/bin/busybox".as_ref(), "sh".as_ref(), path.as_os_str()], &path),
        ];
        shells.map(|one| by_level(one, strict))
    };
    let open = tries(Allowed).map(|one| one.expect(Allowed));
    at_level(lab, Interpreters::Open, &open)?;
    at_level(lab, Interpreters::Default, &tries(NotStopped(Gap::Shells)))?;
    at_level(lab, Interpreters::Strict, &tries(Denied))
}

/// The same as [`MARK`] in other languages.
const PYTHON: &str = "open('/run/cordon-marker/ran', 'w')";
const PERL: &str = "open(F, '>', '/run/cordon-marker/ran');";
const LUA: &str = "io.open('/run/cordon-marker/ran', 'w')";
const AWK: &str = "BEGIN { printf \"\" > \"/run/cordon-marker/ran\" }";

fn interpreter(lab: &mut Lab) -> Result<()> {
    let folder = lab.disk()?;
    let tries = |strict: Expected| -> Result<Vec<Try>> {
        let mut tries = Vec::new();
        for (program, end, comment, text) in
            [("python3", "py", "#", PYTHON), ("perl", "pl", "#", PERL), ("lua", "lua", "--", LUA)]
        {
            let long = format!("{comment}{}\n{text}\n", "x".repeat(1 << 20));
            for (form, name, bytes) in [
                ("with an ending", format!("script.{end}"), text.to_owned()),
                ("without an ending", format!("script-{end}"), text.to_owned()),
                ("with #!", format!("first-{end}"), format!("#!/usr/bin/{program}\n{text}\n")),
                ("with a byte order mark", format!("order-{end}"), format!("\u{feff}{text}\n")),
                ("with a long comment", format!("long-{end}"), long),
            ] {
                let path = folder.join(name);
                write_program(&path, bytes.as_bytes())?;
                let words = [Path::new("/usr/bin").join(program), path.clone()];
                tries.push(by_level(Try::run(&format!("{program}, {form}"), &words, &path), strict));
            }
        }
        Ok(tries)
    };
    let open: Vec<_> = tries(Allowed)?.into_iter().map(|one| one.expect(Allowed)).collect();
    let held = tries(Denied)?;
    at_level(lab, Interpreters::Open, &open)?;
    at_level(lab, Interpreters::Default, &held)?;
    at_level(lab, Interpreters::Strict, &held)
}

fn one_liners(lab: &mut Lab) -> Result<()> {
    let nowhere = Path::new("-");
    let interpreters = [
        ["/usr/bin/python3", "-c", PYTHON].as_slice(),
        &["/usr/bin/python3", "-Ic", PYTHON],
        &["/usr/bin/python3", "-m", "timeit", "-n1", "-r1", PYTHON],
        &["/usr/bin/perl", "-e", PERL],
        &["/usr/bin/perl", "-E", PERL],
        &["/usr/bin/perl", "-ne", PERL, "/etc/passwd"],
        &["/usr/bin/perl", "-M-strict;open(F, '>', '/run/cordon-marker/ran')", "-e", "1"],
        &["/usr/bin/lua", "-e", LUA],
        &["/usr/bin/env", "python3", "-c", PYTHON],
        &["/bin/bash", "-c", "exec python3 -c \"open('/run/cordon-marker/ran', 'w')\""],
        &["/usr/bin/find", "/etc/passwd", "-exec", "python3", "-c", PYTHON, ";"],
        &["/usr/bin/awk", "BEGIN { system(\"lua -e \\\"io.open('/run/cordon-marker/ran', 'w')\\\"\") }"],
    ]
    .map(|words| by_level(Try::run(&words.join(" "), words, nowhere), Denied));
    let tools = [
        ["/usr/bin/awk", AWK].as_slice(),
        &["/usr/bin/awk", "BEGIN { system(\": > /run/cordon-marker/ran\") }"],
        &["/usr/bin/awk", "BEGIN { \": > /run/cordon-marker/ran\" | getline }"],
        &["/usr/bin/busybox", "awk", AWK],
        &["/usr/bin/sed", "-n", "w /run/cordon-marker/ran", "/etc/passwd"],
        &["/usr/bin/sed", "-n", "1e : > /run/cordon-marker/ran", "/etc/passwd"],
        &["/usr/bin/find", "/etc/passwd", "-fprint", MARKER],
        &["/usr/bin/find", "/etc/passwd", "-exec", "touch", MARKER, ";"],
        &["/usr/bin/split", "--filter=: > /run/cordon-marker/ran", "/etc/passwd"],
        &["/usr/bin/flock", "/etc/passwd", "-c", MARK],
    ]
    .map(|words| Try::run(&words.join(" "), words, nowhere).expect(NotStopped(Gap::SmallLanguages)));
    lab.check(&interpreters.into_iter().chain(tools).collect::<Vec<_>>())
}

/// Sends the shell's script to whoever connects, and tells where.
fn serve() -> Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            // Who does not listen any more does not run it, either.
            drop(stream.write_all(format!("{MARK}\n").as_bytes()));
        }
    });
    Ok(port)
}

fn piped(lab: &mut Lab) -> Result<()> {
    // The names that udev makes elsewhere.
    for (name, target) in [("/dev/fd", "/proc/self/fd"), ("/dev/stdin", "/proc/self/fd/0")] {
        if fs::symlink_metadata(name).is_err() {
            std::os::unix::fs::symlink(target, name)?;
        }
    }
    let folder = lab.disk()?;
    let nowhere = Path::new("-");
    let mut tries = Vec::new();
    for (program, text) in [("python3", PYTHON), ("perl", PERL), ("lua", LUA), ("bash", MARK), ("sh", MARK)] {
        let path = folder.join(program);
        write_program(&path, format!("{text}\n").as_bytes())?;
        let path = path.display();
        for line in [
            format!("{program} - < {path}"),
            format!("cat {path} | {program} -"),
            format!("{program} /dev/stdin < {path}"),
            format!("{program} <(cat {path})"),
            format!("{program} - <<'END'\n{text}\nEND\n"),
        ] {
            // Of these two, `-` is no name for what is piped.
            let line = if text == MARK { line.replace(" -", "") } else { line };
            let at_t3 = if text == MARK { NotStopped(Gap::Shells) } else { Denied };
            tries.push(by_level(Try::run(&line, ["/bin/bash", "-c", &line], nowhere), at_t3));
        }
    }
    let connected = format!("exec 3<>/dev/tcp/127.0.0.1/{}; read -r line <&3; eval \"$line\"", serve()?);
    for line in [&connected, ". <(echo ': > /run/cordon-marker/ran')"] {
        tries.push(by_level(Try::run(line, ["/bin/bash", "-c", line], nowhere), NotStopped(Gap::Shells)));
    }
    lab.check(&tries)
}

fn bytecode(lab: &mut Lab) -> Result<()> {
    let folder = lab.disk()?;
    let place = |name: &str| folder.join(name);
    write_program(&place("code.py"), PYTHON.as_bytes())?;
    write_program(&place("code.lua"), LUA.as_bytes())?;
    fs::create_dir(place("app"))?;
    write_program(&place("app/__main__.py"), PYTHON.as_bytes())?;
    let compile = "import py_compile, sys; py_compile.compile(sys.argv[1], cfile=sys.argv[2])";
    run(Command::new("/usr/bin/python3").args(["-c", compile]).args([place("code.py"), place("code.pyc")]))?;
    run(Command::new("/usr/bin/luac").arg("-o").args([place("code.luac"), place("code.lua")]))?;
    run(Command::new("/usr/bin/python3")
        .args(["-m", "zipapp", "-p", "/usr/bin/python3", "-o"])
        .args([place("app.pyz"), place("app")]))?;
    for name in ["code.pyc", "code.luac", "app.pyz"] {
        give_to_user(&place(name), 0o755)?;
    }
    let given = |program: &str, name: &str| {
        let words = [Path::new("/usr/bin").join(program), place(name)];
        by_level(Try::run(name, &words, &place(name)), Denied)
    };
    lab.check(&[
        given("python3", "code.pyc"),
        given("lua", "code.luac"),
        given("python3", "app.pyz"),
        given("python3", "app"),
        Try::exec(&place("app.pyz")),
    ])
}

fn macros(lab: &mut Lab) -> Result<()> {
    let folder = lab.disk()?;
    let path = lab.payload("static", &folder.join("payload"))?;
    let (document, starter) = (folder.join("document"), folder.join("starter"));
    write_program(&document, b"mark\n")?;
    write_program(&starter, format!("run {}\n", path.display()).as_bytes())?;
    lab.check(&[
        Try::run("a macro", [&helper("host"), &document], &document).expect(NotStopped(Gap::Macros)),
        Try::run("a macro that starts a program", [&helper("host"), &starter], &path),
    ])
}

fn starters(lab: &mut Lab) -> Result<()> {
    let folder = lab.disk()?;
    let path = lab.payload("static", &folder.join("payload"))?;
    let p = path.display().to_string();
    let archive = folder.join("archive.tar");
    run(Command::new("/bin/tar").args(["-cf".as_ref(), archive.as_os_str(), "/etc/passwd".as_ref()]))?;
    let a = archive.display();
    let tries: Vec<_> = [
        format!("find /etc/passwd -exec {p} ;"),
        format!("xargs -a /etc/passwd {p}"),
        format!("env {p}"),
        format!("env -S {p}"),
        format!("timeout 10 {p}"),
        format!("nice {p}"),
        format!("nohup {p}"),
        format!("setsid -w {p}"),
        format!("stdbuf -o0 {p}"),
        format!("flock {a} {p}"),
        format!("setpriv --no-new-privs {p}"),
        format!("setarch x86_64 {p}"),
        format!("prlimit --nofile=100 {p}"),
        format!("taskset 1 {p}"),
        format!("ionice {p}"),
        format!("unshare -Ur {p}"),
        format!("nsenter {p}"),
        format!("tar -tf {a} --checkpoint=1 --checkpoint-action=exec={p}"),
        format!("tar -xf {a} --to-command={p}"),
        format!("tar -tf {a} -I {p}"),
        format!("split --filter={p} /etc/passwd"),
        format!("awk BEGIN{{system(\"{p}\")}}"),
        format!("sed -n 1e{p} /etc/passwd"),
        format!("bash -c {p}"),
        format!("busybox sh -c {p}"),
        format!("busybox env {p}"),
        format!("busybox timeout 10 {p}"),
        format!("busybox find /etc/passwd -exec {p} ;"),
        format!("start-stop-daemon --start --exec {p}"),
        format!("run-parts {}", folder.join("parts").display()),
    ]
    .into_iter()
    .map(|line| {
        let words: Vec<&str> = line.split(' ').collect();
        Try::run(words.first().copied().unwrap_or_default(), words.iter().copied(), &path)
            .within(Path::new("/tmp"))
    })
    .collect();
    let parts = folder.join("parts");
    fs::create_dir(&parts)?;
    std::os::unix::fs::symlink(&path, parts.join("part"))?;
    lab.check(&tries)?;
    // What such a program does by itself it does, unless the policy takes it out.
    let touch = |expected| {
        let busybox = Path::new("/usr/bin/busybox");
        Try::run("busybox touch", ["/usr/bin/busybox", "touch", MARKER], busybox).expect(expected)
    };
    lab.check(&[touch(Allowed)])?;
    lab.with_policy(|policy| policy.settings.dual_use = DualUse::Remove)?;
    lab.check(&[touch(Denied)])
}

/// Where formats are registered.
const FORMATS: &str = "/proc/sys/fs/binfmt_misc";

fn formats(lab: &mut Lab) -> Result<()> {
    run(Command::new("/sbin/modprobe").arg("binfmt_misc"))?;
    if !Path::new(FORMATS).join("register").exists() {
        run(Command::new("/bin/mount").args(["-t", "binfmt_misc", "none", FORMATS]))?;
    }
    let register = |line: &str| fs::write(Path::new(FORMATS).join("register"), line).context(line.to_owned());
    let folder = lab.disk()?;
    let payload = lab.payload("static", &folder.join("payload"))?;
    let data = folder.join("data");
    write_program(&data, b"row31-magic")?;
    let code = folder.join("code");
    write_program(&code, format!("row31_python = 1\n{PYTHON}\n").as_bytes())?;
    let document = folder.join("document.row31");
    lab.listed_copies("load", std::slice::from_ref(&document))?;
    for who in BOTH {
        let end = who.own(&document);
        let end = end.extension().unwrap_or_default().to_string_lossy().into_owned();
        register(&format!(":{end}:E::{end}::{}:", payload.display()))?;
    }
    register(&format!(":row31-data:M::row31-magic::{}:", payload.display()))?;
    register(":row31-code:M::row31_python::/usr/bin/python3:")?;
    // It takes one registration, which is taken away again.
    let name = "row31-late";
    let late = |flags: &str, interpreter: &Path| {
        format!(
            "echo ':{name}:M::row31-late::{}:{flags}' > {FORMATS}/register && {MARK} && echo -1 > {FORMATS}/{name}",
            interpreter.display()
        )
    };
    let registers = |name: &str, text: &str, about: &Path| {
        Try::run(name, ["/bin/bash", "-c", text], about).seen(Seen::Cause("guard")).needs_root()
    };
    let python = Path::new("/usr/bin/python3.11");
    lab.check(&[
        Try::run("an unlisted file, whose interpreter is one too", [&data], &data),
        Try::run("an unlisted file, whose interpreter is listed", [&code], &code),
        Try::run("a listed file, whose interpreter is not", [&document], &payload).own_program(),
        registers("registering an unlisted interpreter", &late("", &payload), &payload).by_on(
            Who::Root,
            Tier::T3,
            NotStopped(Gap::Guards),
        ),
        registers("registering a listed interpreter", &late("", python), python).by_on(
            Who::Root,
            Tier::T3,
            NotStopped(Gap::Guards),
        ),
        registers("registering an opened interpreter", &late("F", &payload), &payload)
            .seen(if lab.tier() == Tier::T3 { Seen::At(payload.clone()) } else { Seen::Cause("guard") }),
    ])
}
