//! The programs that run on this machine, and what they have mapped to be executed, as `/proc` shows them.
//!
//! Nothing here opens a file by a name that a process chose: the kernel's own links (`/proc/PID/exe`, `map_files`) lead
//! to the very file that runs, deleted or in another mount namespace as it may be.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

use enforcement::foreign_devices;

/// The most processes that are looked at: the kernel's default `pid_max`.
const PROCESSES_MAX: usize = 32_768;
/// The most files that are noted; each takes a path.
const FILES_MAX: usize = 32_768;
/// The most of one process's maps that is read, in bytes: the kernel's default of 65,530 mappings with usual paths.
const MAPS_BYTES_MAX: u64 = 8 * 1024 * 1024;
/// The most processes that are named for one file, unless more are asked for.
const PIDS_MAX: usize = 16;

/// A file that runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunningFile {
    /// What the kernel calls it in the process's `maps`, for display where it cannot be opened.
    pub name: Vec<u8>,
    /// Whether it is some process's program, not only mapped by one.
    pub is_program: bool,
    /// Whether another machine or process serves it: it must not be opened, which may never end.
    pub is_foreign: bool,
    /// How many processes run it.
    pub processes: u64,
    /// Some of them, or all.
    pub pids: Vec<i32>,
    /// The links by which it can be opened as long as the process lives, one for each of `pids`.
    links: Vec<PathBuf>,
}

impl RunningFile {
    /// Opens the very file; none when nobody runs it any more.
    ///
    /// # Errors
    /// Why it cannot be opened.
    pub fn open(&self) -> io::Result<Option<File>> {
        for link in &self.links {
            match File::open(link) {
                Ok(file) => return Ok(Some(file)),
                // The process is gone: ESRCH when that happens in the middle of it.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) if error.raw_os_error() == Some(nix::libc::ESRCH) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }
}

/// What runs at this moment.
#[derive(Debug, Default)]
pub struct Running {
    /// The files, by name.
    pub files: Vec<RunningFile>,
    /// How many processes were looked at.
    pub processes: u64,
    /// Whether there was more than is looked at.
    pub is_cut: bool,
}

/// A file's device as major and minor number, its inode number, and its name.
type Key = ((u64, u64), u64, Vec<u8>);

/// Looks at every process. Processes that come or go meanwhile are seen or not.
///
/// # Errors
/// When `/proc` cannot be read.
pub fn look() -> io::Result<Running> {
    look_naming(PIDS_MAX)
}

/// The same, with at most `pids_max` processes of each file.
///
/// # Errors
/// When `/proc` cannot be read.
pub fn look_naming(pids_max: usize) -> io::Result<Running> {
    let mut found = Found { pids_max, ..Found::default() };
    for entry in std::fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        if found.processes >= PROCESSES_MAX as u64 {
            found.is_cut = true;
            break;
        }
        // A process that is gone, or is the kernel's own, has no program.
        let _gone = found.add(pid);
    }
    let Found { files, processes, is_cut, .. } = found;
    Ok(Running { files: files.into_values().collect(), processes, is_cut })
}

#[derive(Default)]
struct Found {
    pids_max: usize,
    files: BTreeMap<Key, RunningFile>,
    processes: u64,
    is_cut: bool,
    /// Foreign devices by the mount namespace's number.
    foreign: HashMap<u64, BTreeSet<(u64, u64)>>,
}

impl Found {
    fn add(&mut self, pid: i32) -> io::Result<()> {
        let folder = PathBuf::from(format!("/proc/{pid}"));
        let program = std::fs::read_link(folder.join("exe"))?;
        // As `maps` writes it.
        let program = escaped_newlines(program.as_os_str().as_bytes());
        self.processes += 1;
        let namespace = std::fs::metadata(folder.join("ns/mnt"))?.ino();
        if let Entry::Vacant(unknown) = self.foreign.entry(namespace) {
            unknown.insert(foreign_devices(&std::fs::read(folder.join("mountinfo"))?));
        }
        let maps = BufReader::new(File::open(folder.join("maps"))?.take(MAPS_BYTES_MAX));
        // A library has several executable mappings in one process when parts of it were changed.
        let mut seen = BTreeSet::new();
        for line in maps.split(b'\n') {
            let line = line?;
            let Some((range, key)) = executable(&line) else { continue };
            if !seen.insert(key.clone()) {
                continue;
            }
            let is_foreign = self.foreign.get(&namespace).is_some_and(|foreign| foreign.contains(&key.0));
            let is_program = key.2 == program;
            if self.files.len() >= FILES_MAX && !self.files.contains_key(&key) {
                self.is_cut = true;
                continue;
            }
            let file = self.files.entry(key).or_insert_with_key(|(_, _, name)| RunningFile {
                name: name.clone(),
                is_program: false,
                is_foreign: false,
                processes: 0,
                pids: Vec::new(),
                links: Vec::new(),
            });
            file.is_program |= is_program;
            file.is_foreign |= is_foreign;
            file.processes += 1;
            if file.pids.len() < self.pids_max {
                file.pids.push(pid);
                file.links.push(folder.join("map_files").join(range));
            }
        }
        Ok(())
    }
}

/// The range and the file of a line of `maps` (`proc_pid_maps(5)`) that maps a file to be executed.
fn executable(line: &[u8]) -> Option<(String, Key)> {
    let mut fields = line.splitn(6, |byte| *byte == b' ');
    let (start, end) = std::str::from_utf8(fields.next()?).ok()?.split_once('-')?;
    let (start, end) = (u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?);
    let is_executable = fields.next()?.get(2) == Some(&b'x');
    let device = std::str::from_utf8(fields.nth(1)?).ok()?;
    let inode: u64 = std::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
    let name = fields.next()?.trim_ascii_start();
    let (major, minor) = device.split_once(':')?;
    let device = (u64::from_str_radix(major, 16).ok()?, u64::from_str_radix(minor, 16).ok()?);
    // `map_files` names the ranges without the leading zeros that `maps` has.
    let range = format!("{start:x}-{end:x}");
    (is_executable && inode != 0 && !name.is_empty()).then(|| (range, (device, inode, name.to_vec())))
}

fn escaped_newlines(path: &[u8]) -> Vec<u8> {
    path.iter()
        .flat_map(|byte| if *byte == b'\n' { &b"\\012"[..] } else { std::slice::from_ref(byte) })
        .copied()
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_map_files_to_be_executed_are_found() {
        let line =
            b"00401000-7f0a2000 r-xp 00001000 fe:01 131077                     /usr/lib/a b\\012c (deleted)";
        let (range, key) = executable(line).unwrap();
        assert_eq!(range, "401000-7f0a2000");
        assert_eq!(key, ((0xfe, 1), 131_077, b"/usr/lib/a b\\012c (deleted)".to_vec()));
        for other in [
            &b"7f0a1000-7f0a2000 r--p 00001000 fe:01 131077    /usr/lib/a"[..],
            b"7ffc1000-7ffc2000 r-xp 00000000 00:00 0       [vdso]",
            b"7f0a1000-7f0a2000 rwxp 00000000 00:00 0 ",
            b"7f0a1000-7f0a2000 r-xp 00001000 fe01 131077    /usr/lib/a",
            b"7f0a1000-7f0a2000 r-xp",
            b"",
        ] {
            assert_eq!(executable(other), None, "{}", String::from_utf8_lossy(other));
        }
    }

    #[test]
    fn this_very_process_is_found_and_can_be_opened() {
        let running = look().unwrap();
        let own = i32::try_from(std::process::id()).unwrap();
        let program = std::env::current_exe().unwrap();
        let found = running.files.iter().find(|file| file.is_program && file.pids.contains(&own));
        let found = found.expect("this process's program");
        assert_eq!(found.name, program.as_os_str().as_bytes());
        let opened = found.open().unwrap().expect("it runs");
        let expected = std::fs::metadata(program).unwrap();
        assert_eq!(opened.metadata().unwrap().ino(), expected.ino());
        assert!(!found.is_foreign && running.processes >= 1);
    }
}
