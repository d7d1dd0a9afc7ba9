//! Rows 1 to 20: starting untrusted native code.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::lab::{Lab, helper, kernel, payload_bytes, write_program};
use crate::row::Expected::{Allowed, Detected, NotStopped, OutOfReach};
use crate::row::{Gap, Row, Tier};
use crate::tries::{Seen, Try};

/// The rows.
pub(super) const ROWS: &[Row] = &[
    Row::fast(1, "an unlisted program is executed", plain),
    Row::fast(2, "the loader is given a program", loader),
    Row::fast(3, "libraries by environment: LD_PRELOAD, LD_LIBRARY_PATH, LD_AUDIT", library_by_environment),
    Row::fast(4, "a listed program loads an unlisted library", library_by_program),
    Row::fast(5, "a program in a memfd", memfd),
    Row::fast(6, "temporary file systems", temporary),
    Row::fast(7, "executable anonymous memory, and a program loaded into it", anonymous),
    Row::fast(8, "memory that is made executable", made_executable),
    Row::fast(9, "one memfd mapped twice, to write and to execute", mapped_twice),
    Row::fast(10, "reading implies executing", reading_implies_executing),
    Row::fast(11, "remap_file_pages", remapped),
    Row::fast(12, "other ABIs", other_abis),
    Row::fast(13, "execveat on a descriptor", descriptor),
    Row::fast(14, "paths through /proc", through_proc),
    Row::fast(15, "a deleted file", deleted),
    Row::fast(16, "a file opened by io_uring", by_ring),
    Row::fast(17, "a file opened by its handle", by_handle),
    Row::fast(18, "a descriptor from before the switch, or from another process", held),
    Row::fast(19, "asking whether a file may be executed", check_only),
    Row::fast(20, "set-user-id and capabilities", privileged),
];

/// The loader of Debian's dynamic programs.
const LOADER: &str = "/lib64/ld-linux-x86-64.so.2";

fn plain(lab: &mut Lab) -> Result<()> {
    let path = lab.disk()?.join("payload");
    lab.payload("static", &path)?;
    let dynamic = lab.disk()?.join("payload");
    lab.payload("dynamic", &dynamic)?;
    lab.check(&[Try::exec(&path), Try::exec(&dynamic)])
}

fn loader(lab: &mut Lab) -> Result<()> {
    let path = lab.disk()?.join("payload");
    lab.payload("dynamic", &path)?;
    let mark = helper("mark");
    lab.check(&[
        Try::run("an unlisted program", [Path::new(LOADER), &path], &path)
            .on(Tier::T3, NotStopped(Gap::Mappings)),
        Try::run("a listed program", [Path::new(LOADER), &mark], &mark).expect(Allowed),
    ])
}

fn library_by_environment(lab: &mut Lab) -> Result<()> {
    let folder = lab.disk()?;
    let path = folder.join("libpayload.so");
    lab.payload("library", &path)?;
    let load = helper("load");
    let tries = [
        Try::run("LD_PRELOAD", ["/bin/true"], &path).variable("LD_PRELOAD", &path),
        Try::run("LD_AUDIT", ["/bin/true"], &path).variable("LD_AUDIT", &path),
        Try::run("LD_LIBRARY_PATH", [load.as_os_str(), "libpayload.so".as_ref()], &path)
            .variable("LD_LIBRARY_PATH", &folder),
    ];
    lab.check(&tries.map(|one| one.on(Tier::T3, NotStopped(Gap::Mappings))))
}

fn library_by_program(lab: &mut Lab) -> Result<()> {
    let path = lab.disk()?.join("libpayload.so");
    lab.payload("library", &path)?;
    let builtin = format!("enable -f {} payload", path.display());
    let tries = [
        Try::run("dlopen", [&helper("load"), &path], &path),
        Try::run("a shell's builtin", ["/bin/bash", "-c", &builtin], &path),
    ];
    lab.check(&tries.map(|one| one.on(Tier::T3, NotStopped(Gap::Mappings))))
}

fn memfd(lab: &mut Lab) -> Result<()> {
    let path = lab.disk()?.join("payload");
    lab.payload("static", &path)?;
    let program = helper("memfd");
    let with = |flags: &str| {
        let words = [program.as_os_str(), flags.as_ref(), path.as_os_str()];
        Try::run(flags, words, &path)
            .seen(Seen::Containing("memfd:payload"))
            .on(Tier::T3, NotStopped(Gap::Memfd))
    };
    let mut tries = vec![with("0"), with("2"), with("8").expect(OutOfReach)];
    // MFD_EXEC came with the setting that makes it matter.
    let has_setting = kernel()? >= (6, 3);
    tries.push(if has_setting { with("16") } else { with("16").expect(OutOfReach) });
    lab.check(&tries)?;
    if has_setting {
        for setting in ["1", "2"] {
            fs::write("/proc/sys/vm/memfd_noexec", setting).context("vm.memfd_noexec")?;
            let asked = if setting == "2" { with("16").expect(OutOfReach) } else { with("16") };
            lab.check(&[with("0").expect(OutOfReach), asked])?;
        }
    }
    Ok(())
}

fn temporary(lab: &mut Lab) -> Result<()> {
    fs::create_dir_all("/run/user/1000")?;
    let mounts = fs::read_to_string("/proc/mounts")?;
    let places = mounts.lines().filter_map(|line| {
        let mut words = line.split(' ').skip(1);
        let (place, kind, options) = (words.next()?, words.next()?, words.next()?);
        let may_execute = !options.split(',').any(|option| option == "noexec");
        (["tmpfs", "devtmpfs", "ramfs"].contains(&kind) && may_execute).then_some(place)
    });
    let mut tries = Vec::new();
    for place in places.chain(["/run/user/1000"]) {
        let path = Path::new(place).join("payload-of-row-6");
        lab.payload("static", &path)?;
        tries.push(Try::exec(&path));
    }
    ensure!(tries.len() >= 4, "only {} temporary file systems", tries.len());
    lab.check(&tries)
}

/// Code in a program's own memory: by default it is told of, once for each program.
fn in_memory(lab: &mut Lab, tries: &[(&str, Option<&Path>)]) -> Result<Vec<Try>> {
    let folder = lab.disk()?;
    let programs: Vec<_> = tries.iter().map(|(how, _)| folder.join(how)).collect();
    lab.listed_copies("anonymous", &programs)?;
    let each = tries.iter().zip(&programs).map(|((how, file), program)| {
        let words = [program.as_os_str(), how.as_ref()].into_iter().chain(file.map(Path::as_os_str));
        Try::run(how, words, program)
            .own_program()
            .seen(Seen::Cause("anonymous-code"))
            .expect(Detected)
            .on(Tier::T3, NotStopped(Gap::AnonymousMemory))
    });
    Ok(each.collect())
}

fn anonymous(lab: &mut Lab) -> Result<()> {
    let path = lab.disk()?.join("payload");
    lab.payload("static", &path)?;
    let tries = in_memory(lab, &[("map", None), ("load", Some(&path))])?;
    lab.check(&tries)
}

fn made_executable(lab: &mut Lab) -> Result<()> {
    let path = data_file(lab)?;
    let mut tries = in_memory(lab, &[("protect", None)])?;
    tries.push(mapped("protect-file", Some(&path)).seen(Seen::At(path.clone())));
    lab.check(&tries)
}

/// Code of a file that is not listed, mapped by a program that is.
fn mapped(how: &str, file: Option<&Path>) -> Try {
    let program = helper("anonymous");
    let words = [program.as_os_str(), how.as_ref()].into_iter().chain(file.map(Path::as_os_str));
    Try::run(how, words, &program).on(Tier::T3, NotStopped(Gap::AnonymousMemory))
}

/// A page of nothing that anyone may write.
fn data_file(lab: &mut Lab) -> Result<PathBuf> {
    let path = lab.disk()?.join("data");
    write_program(&path, &[0; 4096])?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o666))?;
    Ok(path)
}

fn mapped_twice(lab: &mut Lab) -> Result<()> {
    lab.check(&[mapped("dual", None).seen(Seen::Containing("memfd:dual"))])
}

fn reading_implies_executing(lab: &mut Lab) -> Result<()> {
    let path = lab.disk()?.join("payload");
    lab.payload("execstack", &path)?;
    let mut tries = in_memory(lab, &[("implied", None)])?;
    tries.push(Try::exec(&path));
    lab.check(&tries)
}

fn remapped(lab: &mut Lab) -> Result<()> {
    let path = data_file(lab)?;
    lab.check(&[mapped("remap", Some(&path)).seen(Seen::At(path.clone()))])
}

fn other_abis(lab: &mut Lab) -> Result<()> {
    let folder = lab.disk()?;
    let old = lab.payload("i386", &folder.join("i386"))?;
    let short = lab.payload("x32", &folder.join("x32"))?;
    // Debian's kernels know x32 only when they are told to.
    lab.check(&[Try::exec(&old), Try::exec(&short).expect(OutOfReach)])
}

/// A helper gets a descriptor of the payload, and executes that.
fn by_descriptor(how: &str, path: &Path) -> Try {
    Try::run(how, [helper("descriptor").as_os_str(), how.as_ref(), path.as_os_str()], path)
}

fn descriptor(lab: &mut Lab) -> Result<()> {
    let path = lab.disk()?.join("payload");
    lab.payload("static", &path)?;
    lab.check(&[
        by_descriptor("open", &path),
        by_descriptor("path", &path),
        by_descriptor("open", &path).started_before_the_switch(),
        by_descriptor("path", &path).started_before_the_switch(),
    ])
}

fn through_proc(lab: &mut Lab) -> Result<()> {
    let path = lab.disk()?.join("payload");
    lab.payload("static", &path)?;
    let running = lab.disk()?.join("running");
    lab.payload("again", &running)?;
    let below_root = format!("/proc/self/root{}", path.display());
    lab.check(&[
        by_descriptor("proc", &path),
        Try::run("/proc/PID/root", [&below_root], &path),
        Try::run("/proc/PID/exe", [running.as_os_str(), "wait".as_ref()], &running)
            .started_before_the_switch(),
    ])
}

fn deleted(lab: &mut Lab) -> Result<()> {
    let path = lab.disk()?.join("payload");
    let bytes = payload_bytes("static")?;
    let write = {
        let path = path.clone();
        move |_| write_program(&path, &bytes)
    };
    lab.check(&[by_descriptor("deleted", &path).before(write)])
}

fn by_ring(lab: &mut Lab) -> Result<()> {
    let path = lab.disk()?.join("payload");
    lab.payload("static", &path)?;
    lab.check(&[by_descriptor("openat-ring", &path), by_descriptor("openat2-ring", &path)])
}

fn by_handle(lab: &mut Lab) -> Result<()> {
    let path = lab.disk()?.join("payload");
    lab.payload("static", &path)?;
    lab.check(&[by_descriptor("handle", &path).needs_root()])
}

fn held(lab: &mut Lab) -> Result<()> {
    let path = lab.disk()?.join("payload");
    lab.payload("static", &path)?;
    lab.check(&[
        by_descriptor("message", &path),
        by_descriptor("message", &path).started_before_the_switch(),
        by_descriptor("proc", &path).started_before_the_switch(),
    ])
}

fn check_only(lab: &mut Lab) -> Result<()> {
    let path = lab.disk()?.join("payload");
    lab.payload("static", &path)?;
    let asked = Try::run("AT_EXECVE_CHECK", [&helper("may_execute"), &path], &path);
    let is_known = kernel()? >= (6, 14);
    lab.check(&[if is_known { asked } else { asked.expect(OutOfReach) }])
}

fn privileged(lab: &mut Lab) -> Result<()> {
    let folder = lab.disk()?;
    let set = lab.payload("static", &folder.join("set-user-id"))?;
    chown(&set, Some(0), Some(0))?;
    fs::set_permissions(&set, fs::Permissions::from_mode(0o4755))?;
    let capable = lab.payload("static", &folder.join("capable"))?;
    let status =
        Command::new("/sbin/setcap").arg("cap_sys_admin,cap_dac_override+ep").arg(&capable).status()?;
    ensure!(status.success(), "setcap ended with {status}");
    lab.check(&[Try::exec(&set), Try::exec(&capable)])
}
