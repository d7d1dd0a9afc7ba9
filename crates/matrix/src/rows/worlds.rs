//! Rows 51 to 59: namespaces, mounts, other worlds.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use domain::allow_policy::{Effect, Matcher, Rule};
use domain::policy_settings::{Guard, GuardMode};

use crate::gate::digest;
use crate::lab::{Lab, MARKER, helper, write_program};
use crate::row::Expected::{Allowed, Detected, NotStopped, OutOfReach};
use crate::row::{Gap, Row, Tier, Who};
use crate::tries::{Seen, Try};

/// The rows.
pub(super) const ROWS: &[Row] = &[
    Row::fast(51, "a bind mount over a listed program", bound),
    Row::fast(52, "a new mount", mounted),
    Row::fast(53, "a user's own mount namespace", own_namespace),
    Row::fast(54, "another root, with a loader and libraries of its own", another_root),
    Row::fast(56, "a virtual machine", machine),
    Row::fast(57, "a kernel module", module),
    Row::fast(58, "another kernel", another_kernel),
    Row::fast(59, "BPF programs in the kernel", bpf),
];

/// A script of a shell that gets through to `payload`.
fn script(name: &str, text: &str, payload: &Path) -> Try {
    Try::run(name, ["/bin/bash", "-c", text], payload)
}

/// Runs a command as root, and holds that it ended well.
fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?} ended with {}: {}", output.status, said.trim());
    Ok(())
}

fn bound(lab: &mut Lab) -> Result<()> {
    let path = lab.disk()?.join("payload");
    lab.payload("static", &path)?;
    let target = Path::new("/usr/bin/tac");
    let text = format!(
        "mount --bind {} {target} && {{ {target}; umount {target}; }}",
        path.display(),
        target = target.display()
    );
    // The file has two names then, and the event may have either.
    let bind = script("mount --bind", &text, target).needs_root();
    let opened = format!(
        "exec 9<{} && mount --bind /proc/self/fd/9 {} && {{ {}; umount {}; }}",
        path.display(),
        target.display(),
        target.display(),
        target.display()
    );
    let by_descriptor = script("by a descriptor", &opened, target).needs_root();
    lab.check(&[bind, by_descriptor])
}

/// A file with an ext4 in it, in which the files of `folder` are.
fn image(lab: &mut Lab, folder: &Path) -> Result<PathBuf> {
    let image = lab.disk()?.join("image");
    fs::File::create(&image)?.set_len(8 << 20)?;
    run(Command::new("/sbin/mke2fs").args(["-q", "-t", "ext4", "-d"]).args([folder, &image]))?;
    Ok(image)
}

fn mounted(lab: &mut Lab) -> Result<()> {
    let folder = lab.disk()?;
    lab.payload("static", &folder.join("payload"))?;
    fs::copy("/usr/bin/touch", folder.join("touch"))?;
    let image = image(lab, &folder)?;
    run(Command::new("/sbin/modprobe").arg("loop"))?;
    let place = Path::new("/mnt/row-52");
    fs::create_dir_all(place)?;
    // At T3 a mount is marked a moment after it appears.
    let on = |what: &str, run: &str| {
        let place = place.display();
        format!("mount {what} {place} && {{ sleep 0.5; {run}; umount {place}; }}")
    };
    let loops = format!("-o loop {}", image.display());
    let payload = place.join("payload");
    let fill = format!("cp {} {p} && {p}", folder.join("payload").display(), p = payload.display());
    let touch = place.join("touch");
    let detached = [helper("detached"), folder.join("payload")];
    lab.check(&[
        script("ext4 by a loop device", &on(&loops, &payload.display().to_string()), &payload).needs_root(),
        script("a packaged program in it", &on(&loops, &format!("{} {MARKER}", touch.display())), &touch)
            .needs_root(),
        script("tmpfs", &on("-t tmpfs none", &fill), &payload).needs_root(),
        Try::run("a tmpfs that is mounted nowhere", &detached, &payload)
            .seen(Seen::Containing("detached"))
            .needs_root()
            .by_on(Who::Root, Tier::T3, NotStopped(Gap::DetachedMounts)),
    ])
}

fn own_namespace(lab: &mut Lab) -> Result<()> {
    let folder = lab.disk()?;
    let path = lab.payload("static", &folder.join("payload"))?;
    let place = folder.join("place");
    fs::create_dir(&place)?;
    let copy = place.join("payload");
    // At T3 the gate looks for new namespaces ten times a second, and less often on a slow machine.
    let inside = |first: &str, run: &Path| format!("{first} && sleep 2 && {}", run.display());
    let fresh =
        format!("mount -t tmpfs none {} && cp {} {}", place.display(), path.display(), copy.display());
    let over = format!("mount --bind {} /usr/bin/tac", path.display());
    let unshare = |name: &str, text: &str, payload: &Path| {
        Try::run(name, ["/usr/bin/unshare", "-Urm", "/bin/bash", "-c", text], payload)
    };
    let program = helper("detached");
    let detached = [program.as_os_str(), "user".as_ref(), path.as_os_str()];
    lab.check(&[
        unshare("tmpfs", &inside(&fresh, &copy), &copy),
        unshare("mount --bind", &inside(&over, Path::new("/usr/bin/tac")), Path::new("/usr/bin/tac")),
        Try::run("a tmpfs that is mounted nowhere", detached, &copy)
            .seen(Seen::Containing("detached"))
            .on(Tier::T3, NotStopped(Gap::DetachedMounts)),
    ])
}

fn another_root(lab: &mut Lab) -> Result<()> {
    let root = lab.disk()?;
    for folder in ["lib64", "lib", "old"] {
        fs::create_dir(root.join(folder))?;
    }
    fs::copy("/lib64/ld-linux-x86-64.so.2", root.join("lib64/ld-linux-x86-64.so.2"))?;
    fs::copy("/lib/x86_64-linux-gnu/libc.so.6", root.join("lib/libc.so.6"))?;
    fs::create_dir(root.join("run"))?;
    fs::create_dir(root.join("run/cordon-marker"))?;
    let dynamic = lab.payload("dynamic", &root.join("dynamic"))?;
    let fixed = lab.payload("static", &root.join("static"))?;
    // Payloads mark by a path: the marker's folder is shown in the new root.
    let within = |how: &str| {
        let root = root.display();
        format!("mount --bind /run/cordon-marker {root}/run/cordon-marker && {how}")
    };
    let chroot = |program: &str| within(&format!("chroot {} /{program}", root.display()));
    let pivot = within(&format!(
        "mount --bind {root} {root} && mount --bind /run/cordon-marker {root}/run/cordon-marker && cd {root} && \
         pivot_root . old && exec /static",
        root = root.display()
    ));
    let unshare = |name: &str, text: &str, payload: &Path| {
        Try::run(name, ["/usr/bin/unshare", "-Urm", "/bin/bash", "-c", text], payload)
    };
    lab.check(&[
        unshare("chroot to a dynamic program", &chroot("dynamic"), &dynamic),
        unshare("chroot to a static program", &chroot("static"), &fixed),
        unshare("pivot_root", &pivot, &fixed).seen(Seen::Containing("/static")),
    ])
}

fn machine(lab: &mut Lab) -> Result<()> {
    let kvm = Path::new("/dev/kvm").exists();
    let program = helper("machine");
    let expected = if kvm { NotStopped(Gap::Machines) } else { OutOfReach };
    lab.check(&[Try::run("KVM", [&program], &program).needs_root().by(Who::Root, expected)])
}

/// A module of Debian's without its signature: as good as one that somebody built.
fn unsigned_module(at: &Path) -> Result<Vec<u8>> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let folder = Path::new("/lib/modules").join(release.trim());
    let mut bytes = fs::read(folder.join("kernel/drivers/net/dummy.ko"))?;
    bytes.extend_from_slice(b"\nno signature ends here\n");
    write_program(at, &bytes)?;
    Ok(bytes)
}

/// The kernel loads code, by the helper. A guard of T1 and T2 watches over it.
fn loads(how: &str, file: &Path) -> Try {
    Try::run(how, [helper("kernel").as_os_str(), how.as_ref(), file.as_os_str()], file)
        .seen(Seen::Cause("guard"))
        .needs_root()
        .by_on(Who::Root, Tier::T3, NotStopped(Gap::Guards))
}

fn module(lab: &mut Lab) -> Result<()> {
    let folder = lab.disk()?;
    let path = folder.join("dummy.ko");
    unsigned_module(&path)?;
    let listed = lab.disk()?.join("dummy.ko");
    let bytes = unsigned_module(&listed)?;
    lab.with_policy(|policy| {
        policy.rules.push(Rule {
            id: "module".to_owned(),
            matcher: Matcher::PathSha256(listed.as_os_str().as_encoded_bytes().to_vec(), digest(&bytes)),
            effect: Effect::Allow,
            comment: String::new(),
        });
    })?;
    lab.check(&[
        loads("finit_module", &path).seen(Seen::At(path.clone())),
        loads("init_module", &path),
        loads("finit_module", &listed).by(Who::Root, Allowed),
        // Nobody can tell where bytes in memory are from.
        loads("init_module", &listed),
    ])
}

fn another_kernel(lab: &mut Lab) -> Result<()> {
    let path = lab.disk()?.join("kernel");
    lab.check(&[loads("kexec_load", &path), loads("kexec_file_load", &path).seen(Seen::At(path.clone()))])
}

fn bpf(lab: &mut Lab) -> Result<()> {
    let nothing = Path::new("-");
    let each = || [loads("fmod_ret", nothing), loads("kprobe", nothing)];
    let told = |one: Try| one.by(Who::Root, Detected).by_on(Who::Root, Tier::T3, NotStopped(Gap::Guards));
    lab.check(&each().map(told))?;
    lab.with_policy(|policy| policy.settings.guards.set(Guard::Bpf, GuardMode::Enforce))?;
    lab.check(&each())
}
