//! Brings the BPF programs into the kernel, and finds those that an earlier gate left there.
//!
//! Maps and links are pinned, so the programs go on when the gate dies. A gate that comes after takes over the maps. If
//! the links are those of its own build it takes them over too; if not, it hangs its own programs beside them, and only
//! then lets go of the old ones: there is no moment without either.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use domain::restriction::Tier;
use libbpf_rs::btf::Btf;
use libbpf_rs::btf::types::{Func, FuncProto};
use libbpf_rs::{Link, MapCore as _, MapHandle, Object, ObjectBuilder, OpenObject};
use nix::sys::statfs::statfs;
use sha2::Digest as _;

use super::abi::LAYOUT;
use crate::Error;

static LSM: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/lsm.bpf.o"));
static FMOD_RET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/fmod_ret.bpf.o"));

/// What every kernel of a tier has. The others guard, and are left out where the kernel has no such hook.
const NEEDED: &[&str] = &["execute_program", "map_file", "protect", "open_file"];

/// The programs with their maps.
pub(super) struct Programs {
    pub(super) maps: Maps,
    /// Attached as long as these live, or are pinned.
    pub(super) links: Vec<Link>,
    /// Whether an earlier gate's maps were taken over.
    pub(super) adopted: bool,
}

/// The maps, by what they hold.
pub(super) struct Maps {
    pub(super) mode: MapHandle,
    pub(super) control: MapHandle,
    pub(super) labels: MapHandle,
    pub(super) sights: MapHandle,
    pub(super) own: MapHandle,
    pub(super) disks: MapHandle,
    pub(super) events: MapHandle,
    pub(super) counters: MapHandle,
}

/// The maps that are pinned; the others hold nothing that must outlive their programs.
const PINNED: &[&str] = &[
    "cordon_mode",
    "cordon_control",
    "cordon_labels",
    "cordon_sights",
    "cordon_mounts",
    "cordon_own",
    "cordon_disks",
    "cordon_heard",
    "cordon_events",
    "cordon_counters",
];

/// Where the pins of one layout are.
#[derive(Debug, Clone)]
struct Pins {
    maps: PathBuf,
    /// One folder for each build of the programs.
    links: PathBuf,
}

impl Pins {
    fn open(folder: &Path) -> Result<Self, Error> {
        let error = |error| Error::new(format!("{}", folder.display()), error);
        let root = folder.join(format!("v{LAYOUT}"));
        let pins = Self { maps: root.join("maps"), links: root.join("links") };
        for folder in [&pins.maps, &pins.links] {
            fs::create_dir_all(folder).map_err(error)?;
        }
        let kind = statfs(&root).map_err(|errno| error(errno.into()))?.filesystem_type();
        if kind != nix::sys::statfs::BPF_FS_MAGIC {
            let what = io::Error::other("this is no BPF filesystem: mount -t bpf none /sys/fs/bpf");
            return Err(error(what));
        }
        Ok(pins)
    }
}

/// The folders of the pins.
pub(super) fn folders(pins: &Path) -> Vec<PathBuf> {
    let root = pins.join(format!("v{LAYOUT}"));
    let links = root.join("links");
    let builds = fs::read_dir(&links).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut folders: Vec<_> = builds.collect();
    folders.extend([pins.to_owned(), root.join("maps"), links, root]);
    folders
}

/// Which superblock holds a folder, as the kernel numbers it.
pub(super) fn device_of(folder: &Path) -> io::Result<u32> {
    let device = fs::metadata(folder)?.dev();
    let (major, minor) = (nix::sys::stat::major(device), nix::sys::stat::minor(device));
    u32::try_from(major << 20 | minor).map_err(io::Error::other)
}

impl Programs {
    /// Loads and attaches, or adopts. `labels_max` counts only where there are no labels yet.
    pub(super) fn start(tier: Tier, pins: Option<&Path>, labels_max: u32) -> Result<Self, Error> {
        let bytes = match tier {
            Tier::BpfLsm => LSM,
            Tier::FmodRet => FMOD_RET,
            Tier::Fanotify => return Err(Error::new("loading", io::Error::other("fanotify loads nothing"))),
        };
        let Some(pins) = pins.map(Pins::open).transpose()? else {
            let (object, links) = load(bytes, labels_max, None)?;
            return Ok(Self {
                maps: Maps::of(&object)?,
                links: links.into_values().collect(),
                adopted: false,
            });
        };
        let adopted = pins.maps.join("cordon_labels").exists();
        let build = format!("{}-{}", tier.name(), hex(&sha2::Sha256::digest(bytes)));
        let own = pins.links.join(&build);
        if adopted && own.is_dir() {
            let maps = Maps::pinned(&pins.maps)?;
            forget_others(&pins.links, &build)?;
            return Ok(Self { maps, links: Vec::new(), adopted });
        }
        let (mut object, mut links) = load(bytes, labels_max, adopted.then_some(pins.maps.as_path()))?;
        if !adopted {
            // Those of a gate that died in the middle of this.
            clear(&pins.maps)?;
            for mut map in object.maps_mut() {
                let name = map.name().to_string_lossy().into_owned();
                // The map of the labels is last: it says that the others are there.
                if PINNED.contains(&name.as_str()) && name != "cordon_labels" {
                    map.pin(pins.maps.join(&name)).map_err(|error| bpf("pinning a map", &error))?;
                }
            }
        }
        // Complete under its final name or not there at all. (Names on a BPF filesystem have no dots.)
        let part = pins.links.join(format!("part-{build}"));
        if part.exists() {
            remove(&part)?;
        }
        fs::create_dir(&part).map_err(|error| Error::new(part.display().to_string(), error))?;
        for (name, link) in &mut links {
            link.pin(part.join(name)).map_err(|error| bpf("pinning a link", &error))?;
        }
        fs::rename(&part, &own).map_err(|error| Error::new(own.display().to_string(), error))?;
        if !adopted {
            for mut map in object.maps_mut() {
                if map.name() == "cordon_labels" {
                    map.pin(pins.maps.join("cordon_labels")).map_err(|error| bpf("pinning a map", &error))?;
                }
            }
        }
        forget_others(&pins.links, &build)?;
        Ok(Self { maps: Maps::of(&object)?, links: links.into_values().collect(), adopted })
    }
}

/// Why the programs of this tier cannot work on this kernel, as far as can be seen without loading them.
pub(super) fn obstacle(tier: Tier) -> Option<String> {
    if !Path::new("/sys/kernel/btf/vmlinux").exists() {
        return Some("the kernel does not describe its types (CONFIG_DEBUG_INFO_BTF)".to_owned());
    }
    match tier {
        Tier::Fanotify | Tier::FmodRet => None,
        Tier::BpfLsm => match fs::read_to_string("/sys/kernel/security/lsm") {
            Ok(modules) if modules.trim().split(',').any(|module| module == "bpf") => None,
            Ok(modules) => Some(format!(
                "bpf is not among the active security modules ({}): the kernel lacks CONFIG_BPF_LSM, or needs bpf in \
                 its boot argument lsm=",
                modules.trim()
            )),
            Err(error) => Some(format!("/sys/kernel/security/lsm cannot be read: {error}")),
        },
    }
}

/// Loads and attaches every program that fits this kernel.
fn load(
    bytes: &[u8],
    labels_max: u32,
    maps: Option<&Path>,
) -> Result<(Object, BTreeMap<String, Link>), Error> {
    libbpf_rs::set_print(Some((libbpf_rs::PrintLevel::Warn, messages::keep)));
    messages::clear();
    let mut object = ObjectBuilder::default().open_memory(bytes).map_err(|error| bpf("opening", &error))?;
    choose(&mut object)?;
    for mut map in object.maps_mut() {
        let name = map.name().to_string_lossy().into_owned();
        if name == "cordon_labels" {
            map.set_max_entries(labels_max).map_err(|error| bpf("sizing the labels", &error))?;
        }
        if let Some(folder) = maps {
            let pin = folder.join(&name);
            map.reuse_pinned_map(&pin).map_err(|error| bpf(&format!("taking over {name}"), &error))?;
        }
    }
    let object = object.load().map_err(|error| bpf("loading the BPF programs", &error))?;
    let mut links = BTreeMap::new();
    for program in object.progs_mut() {
        if program.autoload() {
            let name = program.name().to_string_lossy().into_owned();
            let link = program.attach().map_err(|error| bpf(&format!("attaching {name}"), &error))?;
            links.insert(name, link);
        }
    }
    Ok((object, links))
}

/// Leaves out the programs whose hook this kernel does not have.
fn choose(object: &mut OpenObject) -> Result<(), Error> {
    let kernel = Btf::from_vmlinux().map_err(|error| bpf("reading the kernel's types", &error))?;
    for mut program in object.progs_mut() {
        let name = program.name().to_string_lossy().into_owned();
        let section = program.section().to_string_lossy().into_owned();
        let function = match section.split_once('/') {
            Some(("lsm", hook)) => format!("bpf_lsm_{hook}"),
            Some((_, function)) => function.to_owned(),
            None => section,
        };
        let arguments = kernel
            .type_by_name::<Func<'_>>(&function)
            .and_then(|function| FuncProto::try_from(function.next_type()?).ok())
            .map(|prototype| prototype.len());
        let fits = match name.as_str() {
            "set_attributes_2" => arguments == Some(2),
            "set_attributes_3" => arguments == Some(3),
            _ => arguments.is_some(),
        };
        if !fits && NEEDED.contains(&name.as_str()) {
            let what = io::Error::other(format!("the kernel has no function {function}"));
            return Err(Error::new("choosing the BPF programs", what));
        }
        program.set_autoload(fits);
    }
    Ok(())
}

impl Maps {
    fn of(object: &Object) -> Result<Self, Error> {
        Self::find(|name| {
            let map = object.maps().find(|map| map.name() == name);
            let map = map.ok_or_else(|| Error::new(name, io::Error::from(io::ErrorKind::NotFound)))?;
            MapHandle::try_from(&map).map_err(|error| bpf(name, &error))
        })
    }

    fn pinned(folder: &Path) -> Result<Self, Error> {
        Self::find(|name| {
            let map = MapHandle::from_pinned_path(folder.join(name)).map_err(|error| bpf(name, &error))?;
            let expected = sizes(name);
            let found = (map.key_size(), map.value_size());
            if expected.is_some_and(|expected| expected != found) {
                return Err(Error::new(name, io::Error::other("the pinned map is of another layout")));
            }
            Ok(map)
        })
    }

    fn find(find: impl Fn(&str) -> Result<MapHandle, Error>) -> Result<Self, Error> {
        Ok(Self {
            mode: find("cordon_mode")?,
            control: find("cordon_control")?,
            labels: find("cordon_labels")?,
            sights: find("cordon_sights")?,
            own: find("cordon_own")?,
            disks: find("cordon_disks")?,
            events: find("cordon_events")?,
            counters: find("cordon_counters")?,
        })
    }
}

/// Bytes of a map's keys and values, where they are ours to read.
fn sizes(map: &str) -> Option<(u32, u32)> {
    use super::abi::{Control, Key, Label, Sight};
    let bytes = |key: usize, value: usize| Some((u32::try_from(key).ok()?, u32::try_from(value).ok()?));
    match map {
        "cordon_mode" => bytes(4, 8),
        "cordon_control" => bytes(4, Control::BYTES),
        "cordon_labels" => bytes(Key::BYTES, Label::BYTES),
        "cordon_sights" => bytes(4, Sight::BYTES),
        "cordon_own" => bytes(Key::BYTES, 4),
        "cordon_disks" => bytes(4, 4),
        "cordon_counters" => bytes(4, 8),
        _ => None,
    }
}

/// Lets go of the links of other builds.
fn forget_others(links: &Path, build: &str) -> Result<(), Error> {
    let entries = fs::read_dir(links).map_err(|error| Error::new(links.display().to_string(), error))?;
    for entry in entries.flatten() {
        if entry.file_name() != build {
            remove(&entry.path())?;
        }
    }
    Ok(())
}

fn clear(folder: &Path) -> Result<(), Error> {
    let entries = fs::read_dir(folder).map_err(|error| Error::new(folder.display().to_string(), error))?;
    for entry in entries.flatten() {
        fs::remove_file(entry.path())
            .map_err(|error| Error::new(entry.path().display().to_string(), error))?;
    }
    Ok(())
}

fn remove(folder: &Path) -> Result<(), Error> {
    fs::remove_dir_all(folder).map_err(|error| Error::new(folder.display().to_string(), error))
}

/// Takes all pins away, and the programs with them as soon as nothing else holds them.
pub(super) fn unpin(folder: &Path) -> Result<(), Error> {
    let root = folder.join(format!("v{LAYOUT}"));
    if root.exists() { remove(&root) } else { Ok(()) }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// An error of the library, with what it said last.
fn bpf(what: &str, error: &libbpf_rs::Error) -> Error {
    let said = messages::last();
    let text = if said.is_empty() { error.to_string() } else { format!("{error}: {said}") };
    Error::new(what, io::Error::new(error_kind(error), text))
}

fn error_kind(error: &libbpf_rs::Error) -> io::ErrorKind {
    if error.kind() == libbpf_rs::ErrorKind::PermissionDenied {
        io::ErrorKind::PermissionDenied
    } else {
        io::ErrorKind::Other
    }
}

/// What libbpf says, kept instead of printed: the last lines name what failed.
mod messages {
    use std::collections::VecDeque;
    use std::sync::{Mutex, PoisonError};

    static LINES: Mutex<VecDeque<String>> = Mutex::new(VecDeque::new());
    const LINES_MAX: usize = 3;
    const LINE_BYTES_MAX: usize = 300;

    #[expect(clippy::needless_pass_by_value, reason = "the library's signature")]
    pub(super) fn keep(_level: libbpf_rs::PrintLevel, text: String) {
        let text = text.trim();
        // A verifier's log is one long message; its end says what is wrong.
        let start = text.ceil_char_boundary(text.len().saturating_sub(LINE_BYTES_MAX));
        let mut lines = LINES.lock().unwrap_or_else(PoisonError::into_inner);
        lines.push_back(text.get(start..).unwrap_or_default().replace('\n', " | "));
        if lines.len() > LINES_MAX {
            lines.pop_front();
        }
    }

    pub(super) fn clear() {
        LINES.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    pub(super) fn last() -> String {
        let lines = LINES.lock().unwrap_or_else(PoisonError::into_inner);
        lines.iter().cloned().collect::<Vec<_>>().join("; ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The C side and the Rust side agree on every map, and the programs that must be there are.
    #[test]
    fn the_layouts_are_the_same_on_both_sides() {
        for bytes in [LSM, FMOD_RET] {
            let object = ObjectBuilder::default().open_memory(bytes).unwrap();
            let mut names = Vec::new();
            for map in object.maps() {
                let name = map.name().to_str().unwrap();
                names.push(name.to_owned());
                if let Some(expected) = sizes(name) {
                    assert_eq!((map.key_size(), map.value_size()), expected, "{name}");
                }
            }
            for name in PINNED {
                assert!(names.iter().any(|found| found == name), "{name}");
            }
            let programs: Vec<_> = object.progs().map(|program| program.name().to_owned()).collect();
            for name in NEEDED {
                assert!(programs.iter().any(|found| found == name), "{name}");
            }
        }
    }
}
