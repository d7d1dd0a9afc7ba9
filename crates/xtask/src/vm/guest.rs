//! A guest's boot: what is put into it besides its disk, QEMU, and the lines that come back.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use super::image::{BOOT_MODULES, Disk, Images};
use super::{Stage, Tier};
use crate::lab::Process;
use crate::programs::{GuestPrograms, workspace};
use crate::{command, lab};

/// Where the guest finds what is put into it: as `guest::FOLDER` in crate `matrix`.
const FOLDER: &str = "usr/lib/cordon-matrix";
/// A guest that is silent for so long is stuck.
const SILENCE_MAX: Duration = Duration::from_secs(300);
/// More boots than any row asks for.
const BOOTS_MAX: u32 = 20;

/// The service that runs the rows of the debian stage.
const MATRIX_UNIT: &str = "\
[Unit]
Description=The bypass matrix
After=dbus.service ssh.service cron.service systemd-user-sessions.service

[Service]
Type=exec
ExecStart=/usr/lib/cordon-matrix/cordon-matrix run
StandardError=journal+console
";

/// The first program in the guest's memory: it finds the disk, puts in what is new when the machine boots for the first
/// time, and goes on there.
fn first_program(modules: &str, next: &str) -> String {
    format!(
        "#!/bin/busybox sh\n\
         export PATH=/bin\n\
         busybox mount -t proc proc /proc\n\
         busybox mount -t devtmpfs dev /dev\n\
         for module in {modules}; do busybox insmod /modules/$module.ko; done\n\
         busybox mount -t ext4 /dev/vda /root || exec busybox poweroff -f\n\
         busybox grep -q cordon.first /proc/cmdline && busybox cp -a /put/. /root/\n\
         busybox rm -rf /put\n\
         busybox umount /proc\n\
         busybox mount --move /dev /root/dev\n\
         exec busybox switch_root /root {next}\n"
    )
}

/// The programs of the matrix, compiled: folders `payloads` and `helpers`.
pub(crate) fn compile(into: &Path) -> Result<()> {
    let sources = workspace().join("crates/matrix");
    for folder in ["payloads", "helpers"] {
        let out = into.join(folder);
        fs::create_dir_all(&out)?;
        for entry in fs::read_dir(sources.join(folder))? {
            let source = entry?.path();
            if source.extension().is_none_or(|extension| extension != "c") {
                continue;
            }
            let program = out.join(source.file_stem().context("a source without a name")?);
            if is_newer(&program, &sources.join(folder)) {
                continue;
            }
            let text = fs::read_to_string(&source)?;
            // The first line of each says how it is compiled.
            let flags = text
                .lines()
                .next()
                .and_then(|line| line.strip_prefix("/* cc: ")?.strip_suffix(" */"))
                .with_context(|| format!("{} does not begin with /* cc: FLAGS */", source.display()))?;
            let mut cc = Command::new("cc");
            cc.args(["-O1", "-Wall", "-Werror", "-s", "-fno-stack-protector", "-o"])
                .arg(&program)
                .arg(&source);
            cc.arg("-I").arg(sources.join("payloads")).args(flags.split_whitespace());
            command::run(&mut cc)?;
        }
    }
    Ok(())
}

/// Whether `program` is newer than every source in `folder`, headers too.
fn is_newer(program: &Path, folder: &Path) -> bool {
    let changed = |path: &Path| path.metadata().and_then(|metadata| metadata.modified());
    let Ok(built) = changed(program) else { return false };
    let Ok(entries) = fs::read_dir(folder) else { return false };
    entries.flatten().all(|entry| changed(&entry.path()).is_ok_and(|source| source < built))
}

/// What one boot, or a chain of boots of one machine, is to do.
pub(crate) struct Plan {
    pub(crate) tier: Tier,
    pub(crate) stage: Stage,
    /// Rows to run; all of the stage when there are none.
    pub(crate) rows: Vec<String>,
}

/// Boots the guest until its rows are done. Gives each line to `tell` as it comes.
pub(crate) fn run(
    images: &Images,
    programs: &GuestPrograms,
    plan: &Plan,
    folder: &Path,
    mut tell: impl FnMut(&Value),
) -> Result<()> {
    let disk = match plan.stage {
        Stage::Fast => &images.fast,
        Stage::Debian => &images.debian,
    };
    fs::create_dir_all(folder)?;
    let memory = folder.join("memory.cpio");
    pack(images, programs, plan, disk, folder, &memory)?;
    // Written to in the guest, and gone with the folder.
    let overlay = folder.join("disk.qcow2");
    let mut create = Command::new("qemu-img");
    create.args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"]).arg(&disk.image).arg(&overlay);
    command::run(&mut create)?;
    let mut boot = json!({ "first": true });
    for _ in 0..BOOTS_MAX {
        match boot_once(images, plan, &boot, &memory, &overlay, folder, &mut tell)? {
            End::Done => return Ok(()),
            End::Again(next) => boot = next,
        }
    }
    bail!("the guest wants to be booted more than {BOOTS_MAX} times")
}

/// The memory file system: first program, modules, and all that is put onto the disk.
fn pack(
    images: &Images,
    programs: &GuestPrograms,
    plan: &Plan,
    disk: &Disk,
    folder: &Path,
    memory: &Path,
) -> Result<()> {
    let root = folder.join("memory");
    let put = root.join("put");
    for place in ["bin", "proc", "dev", "root", "modules", "put/usr/bin"] {
        fs::create_dir_all(root.join(place))?;
    }
    fs::create_dir_all(put.join(FOLDER))?;
    fs::copy("/bin/busybox", root.join("bin/busybox"))?;
    for module in BOOT_MODULES {
        fs::copy(images.module(module)?, root.join("modules").join(format!("{module}.ko")))?;
    }
    let next = match plan.stage {
        Stage::Fast => "/usr/lib/cordon-matrix/cordon-matrix init",
        Stage::Debian => "/sbin/init",
    };
    install(&root.join("init"), first_program(&BOOT_MODULES.join(" "), next).as_bytes(), 0o755)?;
    let matrix = put.join(FOLDER);
    fs::copy(&programs.gate, put.join("usr/bin/cordon-gate"))?;
    fs::copy(&programs.matrix, matrix.join("cordon-matrix"))?;
    fs::copy(&disk.baseline, matrix.join("baseline"))?;
    if plan.stage == Stage::Debian {
        put_services(programs, plan.tier, &put)?;
    }
    let wanted = json!({ "tier": plan.tier, "stage": plan.stage, "rows": plan.rows });
    install(&matrix.join("run.json"), wanted.to_string().as_bytes(), 0o644)?;
    command::run(Command::new("cp").arg("-a").arg(programs.compiled.join("payloads")).arg(&matrix))?;
    command::run(Command::new("cp").arg("-a").arg(programs.compiled.join("helpers")).arg(&matrix))?;
    let list = Command::new("find").arg(".").current_dir(&root).stdout(Stdio::piped()).spawn()?;
    let mut cpio = Command::new("cpio");
    cpio.args(["--create", "--format=newc", "--quiet", "--owner=0:0"]).current_dir(&root);
    cpio.stdin(list.stdout.context("no list")?).stdout(fs::File::create(memory)?);
    command::run(&mut cpio)
}

/// What Cordon's package installs (packaging/README.md), and the service that runs the rows.
fn put_services(programs: &GuestPrograms, tier: Tier, put: &Path) -> Result<()> {
    let agent = programs.agent.as_ref().context("the agent was not built")?;
    fs::copy(agent, put.join("usr/bin/cordon-agent"))?;
    let packaging = workspace().join("packaging");
    let units = put.join("usr/lib/systemd/system");
    for (from, to) in [
        ("systemd", units.clone()),
        ("sysusers.d", put.join("usr/lib/sysusers.d")),
        ("tmpfiles.d", put.join("usr/lib/tmpfiles.d")),
    ] {
        fs::create_dir_all(&to)?;
        for entry in fs::read_dir(packaging.join(from))? {
            let entry = entry?;
            fs::copy(entry.path(), to.join(entry.file_name()))?;
        }
    }
    install(&units.join("cordon-matrix.service"), MATRIX_UNIT.as_bytes(), 0o644)?;
    for (target, service) in
        [("sysinit", "cordon-keeper"), ("sysinit", "cordon-gate"), ("multi-user", "cordon-matrix")]
    {
        let wants = put.join(format!("etc/systemd/system/{target}.target.wants"));
        fs::create_dir_all(&wants)?;
        let unit = format!("{service}.service");
        std::os::unix::fs::symlink(format!("/usr/lib/systemd/system/{unit}"), wants.join(&unit))?;
    }
    let settings = put.join("etc/cordon");
    fs::create_dir_all(&settings)?;
    let tier = format!("tier = {:?}\n", tier.gate_name());
    install(&settings.join("gate.toml"), tier.as_bytes(), 0o644)
}

fn install(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    fs::File::create(path)?.write_all(bytes)?;
    Ok(fs::set_permissions(path, fs::Permissions::from_mode(mode))?)
}

/// How a boot ended.
enum End {
    Done,
    Again(Value),
}

fn boot_once(
    images: &Images,
    plan: &Plan,
    boot: &Value,
    memory: &Path,
    overlay: &Path,
    folder: &Path,
    tell: &mut impl FnMut(&Value),
) -> Result<End> {
    let console = folder.join("console.log");
    let lsm = boot.get("lsm").and_then(Value::as_str).unwrap_or(plan.tier.lsm());
    let first = if boot.get("first").is_some() { " cordon.first" } else { "" };
    let mut qemu = Command::new("qemu-system-x86_64");
    qemu.args(["-M", "q35", "-accel", "tcg", "-cpu", "max", "-m", "1G", "-nodefaults", "-no-reboot"])
        .args(["-display", "none", "-chardev"])
        .arg(format!("file,id=console,append=on,path={}", console.display()))
        .args(["-serial", "chardev:console", "-serial", "stdio", "-kernel"])
        .arg(&images.kernel)
        .arg("-initrd")
        .arg(memory)
        .arg("-drive")
        // What survives is what the guest's kernel believes to be on the disk: no need to wait for the host's.
        .arg(format!("file={},format=qcow2,if=virtio,cache=unsafe", overlay.display()))
        .args(["-append", &format!("console=ttyS0 quiet panic=-1 cordon.guest lsm={lsm}{first}")])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(fs::File::create(folder.join("qemu.log"))?);
    if boot.get("no_network").and_then(Value::as_bool) != Some(true) {
        // A card that leads nowhere but to this very process.
        qemu.args(["-netdev", "user,id=net,restrict=on", "-device", "virtio-net-pci,netdev=net,romfile="]);
    }
    let (mut process, output) = Process::start_piped(&mut qemu)?;
    let silent = Watchdog::start(process.id());
    let mut end = None;
    for line in BufReader::new(output).lines() {
        let line = line?;
        silent.reset();
        let Ok(value) = serde_json::from_str::<Value>(line.trim()) else { continue };
        match value.get("type").and_then(Value::as_str) {
            Some("done") => end = Some(End::Done),
            Some("again") => end = Some(End::Again(value.get("boot").cloned().unwrap_or_default())),
            Some("failed") => {
                let reason = value.get("reason").and_then(Value::as_str).unwrap_or_default();
                bail!("{reason}\n{}", lab::end_of(&console));
            }
            _ => tell(&value),
        }
        if matches!(end, Some(End::Done)) {
            // Its disk is thrown away, so it need not be switched off.
            process.kill()?;
        }
    }
    ensure!(!silent.barked(), "the guest was silent for {SILENCE_MAX:?}\n{}", lab::end_of(&console));
    end.with_context(|| format!("the guest ended before its rows were done\n{}", lab::end_of(&console)))
}

/// Ends a guest from which nothing comes any more.
struct Watchdog {
    last: Arc<std::sync::Mutex<Instant>>,
    barked: Arc<AtomicBool>,
    over: Arc<AtomicBool>,
}

impl Watchdog {
    fn start(process: u32) -> Self {
        let dog = Self {
            last: Arc::new(std::sync::Mutex::new(Instant::now())),
            barked: Arc::default(),
            over: Arc::default(),
        };
        let (last, barked, over) = (Arc::clone(&dog.last), Arc::clone(&dog.barked), Arc::clone(&dog.over));
        std::thread::spawn(move || {
            while !over.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(200));
                let elapsed = last.lock().map_or(Duration::ZERO, |last| last.elapsed());
                if elapsed > SILENCE_MAX {
                    barked.store(true, Ordering::Relaxed);
                    lab::kill(process);
                    return;
                }
            }
        });
        dog
    }

    fn reset(&self) {
        if let Ok(mut last) = self.last.lock() {
            *last = Instant::now();
        }
    }

    fn barked(&self) -> bool {
        self.barked.load(Ordering::Relaxed)
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

/// Where a guest's files are while it runs.
pub(crate) fn folder_of(all: &Path, plan: &Plan) -> PathBuf {
    all.join(format!("{}-{}", plan.stage.name(), plan.tier.name()))
}
