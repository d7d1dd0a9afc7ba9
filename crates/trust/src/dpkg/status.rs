//! `status`: one stanza a package, of which four fields matter here.

use std::io::{self, BufRead};

use super::lines::{Line, Lines};
use super::{Md5Digest, parse_md5};
use crate::shipped::clean_path;

/// The most packages that are read.
const PACKAGES_MAX: usize = 200_000;
/// The most configuration files that are read, of all packages together.
const CONFFILES_MAX: usize = 1_000_000;

/// An installed package.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Package {
    /// The package's name without architecture.
    pub name: String,
    /// What its database files are named by: `name:architecture` when several architectures of it can be installed
    /// side by side, else the name.
    pub key: String,
    /// The configuration files as shipped, by absolute path. They are not in `md5sums`.
    pub conffiles: Vec<(Vec<u8>, Md5Digest)>,
}

/// The packages of a machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Status {
    /// Sorted by key, no two alike. Packages whose triggers are pending are installed: all their files are in place.
    pub packages: Vec<Package>,
    /// Packages that are between two states, because dpkg runs or failed. Those of them that are unpacked, and wait for
    /// their configuration, are in `packages`: all their files are in place.
    pub unfinished: u64,
    /// Stanzas and lines that could not be understood.
    pub malformed: u64,
}

/// Reads all stanzas.
///
/// # Errors
/// From the input.
pub fn read_status(input: impl BufRead) -> io::Result<Status> {
    let mut lines = Lines::new(input);
    let mut status = Status::default();
    let mut conffiles_left = CONFFILES_MAX;
    let mut stanza = Stanza::default();
    while let Some(line) = lines.next()? {
        match line {
            Line::TooLong => {
                stanza.field = Field::Other;
                status.malformed += 1;
            }
            Line::Text(b"") => std::mem::take(&mut stanza).finish(&mut status),
            Line::Text(line) => {
                if stanza.read(line, &mut conffiles_left).is_none() {
                    status.malformed += 1;
                }
            }
        }
    }
    stanza.finish(&mut status);
    status.packages.sort_by(|a, b| a.key.cmp(&b.key));
    // Two stanzas of one key contradict each other, so neither counts.
    let mut duplicates: Vec<String> = Vec::new();
    for pair in status.packages.windows(2) {
        if let [a, b] = pair
            && a.key == b.key
        {
            duplicates.push(a.key.clone());
        }
    }
    status.malformed += duplicates.len() as u64;
    status.packages.retain(|package| duplicates.binary_search(&package.key).is_err());
    Ok(status)
}

/// Which field the continuation lines belong to.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Field {
    #[default]
    Other,
    Conffiles,
}

#[derive(Debug, Default)]
struct Stanza {
    field: Field,
    name: Option<String>,
    state: Option<State>,
    architecture: Option<String>,
    multi_arch_same: bool,
    conffiles: Vec<(Vec<u8>, Md5Digest)>,
    contradicts_itself: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Installed,
    Unpacked,
    Unfinished,
    Absent,
}

impl Stanza {
    /// `None` when the line is malformed.
    fn read(&mut self, line: &[u8], conffiles_left: &mut usize) -> Option<()> {
        if let Some(continuation) = line.strip_prefix(b" ").or_else(|| line.strip_prefix(b"\t")) {
            if self.field == Field::Conffiles
                && let Conffile::Shipped(path, md5) = parse_conffile(continuation)?
            {
                *conffiles_left = conffiles_left.checked_sub(1)?;
                self.conffiles.push((path, md5));
            }
            return Some(());
        }
        self.field = Field::Other;
        let colon = line.iter().position(|byte| *byte == b':')?;
        let (name, value) = line.split_at(colon);
        let value = value.strip_prefix(b":")?.trim_ascii();
        let text = || String::from_utf8(value.to_vec()).ok();
        let seen_before = match name.to_ascii_lowercase().as_slice() {
            b"package" => self.name.replace(text().filter(|name| is_package_name(name))?).is_some(),
            b"status" => self.state.replace(parse_state(value)?).is_some(),
            b"architecture" => {
                self.architecture.replace(text().filter(|name| is_package_name(name))?).is_some()
            }
            b"multi-arch" => std::mem::replace(&mut self.multi_arch_same, value == b"same"),
            b"conffiles" => {
                self.field = Field::Conffiles;
                false
            }
            _ => false,
        };
        self.contradicts_itself |= seen_before;
        Some(())
    }

    fn finish(self, status: &mut Status) {
        let (name, state) = match (self.name, self.state) {
            // Several empty lines in a row.
            (None, None) => return,
            (Some(name), Some(state)) if !self.contradicts_itself => (name, state),
            _ => {
                status.malformed += 1;
                return;
            }
        };
        match state {
            State::Absent => return,
            State::Unfinished => {
                status.unfinished += 1;
                return;
            }
            State::Unpacked => status.unfinished += 1,
            State::Installed => {}
        }
        let key = match (self.multi_arch_same, self.architecture) {
            (false, _) => name.clone(),
            (true, Some(architecture)) => format!("{name}:{architecture}"),
            (true, None) => {
                status.malformed += 1;
                return;
            }
        };
        if status.packages.len() < PACKAGES_MAX {
            status.packages.push(Package { name, key, conffiles: self.conffiles });
        } else {
            status.malformed += 1;
        }
    }
}

/// The name becomes part of a file name, so nothing else than Debian's alphabet is believed.
fn is_package_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"+-.".contains(&byte);
    (1..=200).contains(&name.len()) && !name.starts_with('.') && name.bytes().all(allowed)
}

/// Three words: what is wanted, whether it is broken, the state.
fn parse_state(value: &[u8]) -> Option<State> {
    let words: Vec<&[u8]> = value.split(|byte| *byte == b' ').collect();
    let [_wanted, flag, state] = words.as_slice() else { return None };
    match (*flag, *state) {
        (b"ok", b"installed" | b"triggers-pending" | b"triggers-awaited") => Some(State::Installed),
        (b"ok", b"unpacked" | b"half-configured") => Some(State::Unpacked),
        (_, b"not-installed" | b"config-files") => Some(State::Absent),
        (
            b"ok" | b"reinstreq",
            b"installed" | b"triggers-pending" | b"triggers-awaited" | b"unpacked" | b"half-configured"
            | b"half-installed",
        ) => Some(State::Unfinished),
        _ => None,
    }
}

enum Conffile {
    /// Left over from an older version, or about to come.
    NotShipped,
    Shipped(Vec<u8>, Md5Digest),
}

/// A path, an MD5 and flags.
fn parse_conffile(line: &[u8]) -> Option<Conffile> {
    let mut line = line;
    let mut shipped = true;
    while let Some(rest) =
        line.strip_suffix(b" obsolete").or_else(|| line.strip_suffix(b" remove-on-upgrade"))
    {
        line = rest;
        shipped = false;
    }
    if !shipped || line.ends_with(b" newconffile") {
        return Some(Conffile::NotShipped);
    }
    let (path, md5) = line.split_at_checked(line.len().checked_sub(33)?)?;
    let path = clean_path(path.strip_prefix(b"/")?)?;
    Some(Conffile::Shipped(path, parse_md5(md5.strip_prefix(b" ")?)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Status {
        read_status(text.as_bytes()).unwrap()
    }

    /// The keys of the packages that count, then the numbers of unfinished and malformed.
    fn check(text: &str, keys: &[&str], unfinished: u64, malformed: u64) {
        let status = read(text);
        let found: Vec<&str> = status.packages.iter().map(|package| package.key.as_str()).collect();
        assert_eq!(
            (found.as_slice(), status.unfinished, status.malformed),
            (keys, unfinished, malformed),
            "{text}"
        );
    }

    #[test]
    fn states_table() {
        for (state, keys, unfinished, malformed) in [
            ("install ok installed", &["a"][..], 0, 0),
            ("hold ok installed", &["a"], 0, 0),
            ("deinstall ok installed", &["a"], 0, 0),
            ("install ok triggers-pending", &["a"], 0, 0),
            ("install reinstreq installed", &[], 1, 0),
            ("install ok half-configured", &["a"], 1, 0),
            ("install ok unpacked", &["a"], 1, 0),
            ("install reinstreq unpacked", &[], 1, 0),
            ("install reinstreq half-installed", &[], 1, 0),
            ("install ok half-installed", &[], 1, 0),
            ("deinstall ok config-files", &[], 0, 0),
            ("install ok", &[], 0, 2),
            ("install ok installed really", &[], 0, 2),
        ] {
            check(&format!("Package: a\nStatus: {state}\n"), keys, unfinished, malformed);
        }
    }

    #[test]
    fn only_multi_arch_same_is_named_with_its_architecture() {
        let ok = "Status: install ok installed\nArchitecture: amd64\n";
        let text = format!("Package: b\n{ok}Multi-Arch: same\n\n\nPackage: a\n{ok}Multi-Arch: foreign\n");
        check(&text, &["a", "b:amd64"], 0, 0);
        check("Package: b\nStatus: install ok installed\nMulti-Arch: same\n", &[], 0, 1);
    }

    #[test]
    fn names_that_are_no_names_and_contradictions_do_not_count() {
        let ok = "Status: install ok installed\n";
        for name in ["", "../../tmp/x", "a/b", "A", ".a", "a b"] {
            check(&format!("Package: {name}\n{ok}"), &[], 0, 2);
        }
        check(&format!("Package: a\n{ok}Package: b\n"), &[], 0, 1);
        check(
            &format!("Package: a\n{ok}\nPackage: a\n{ok}\nPackage: a\n{ok}\nPackage: b\n{ok}"),
            &["b"],
            0,
            2,
        );
        check(&format!("Package: a\nrubbish\n{ok}"), &["a"], 0, 1);
        let huge = "x".repeat(2 << 20);
        check(&format!("Package: a\nDepends: {huge}\n{ok}\nPackage: {huge}\n{ok}"), &["a"], 0, 3);
    }

    #[test]
    fn configuration_files_count_when_the_installed_version_ships_them() {
        let md5 = "0123456789abcdef0123456789abcdef";
        let status = read(&format!(
            "Package: a\nStatus: install ok installed\nConffiles:\n /etc/a b {md5}\n /etc/old {md5} obsolete\n \
             /etc/new newconffile\n /etc/gone newconffile remove-on-upgrade\n /etc/gone {md5} remove-on-upgrade\n \
             relative {md5}\n /etc/bad 123\n\nPackage: b\nStatus: install ok installed\nDescription: x\n /etc/no {md5}\n"
        ));
        let conffiles = |i: usize| status.packages[i].conffiles.iter().map(|(path, _)| path.as_slice());
        assert_eq!(conffiles(0).collect::<Vec<_>>(), [b"/etc/a b"]);
        assert_eq!((conffiles(1).count(), status.malformed), (0, 2));
    }
}
