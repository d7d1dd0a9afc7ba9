//! `Packages`: the archives of a repository, one stanza each.

use std::collections::HashMap;
use std::io::{self, BufRead};

use domain::digest::Sha256Digest;

use crate::dpkg::{Line, Lines};

/// What a list says of an archive.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Named {
    /// The package's name, `[a-z0-9+.-]`.
    pub package: String,
    /// Its architecture, such as `amd64` or `all`.
    pub architecture: String,
}

/// Reads a list to its end; answers those of its archives that are wanted. What cannot be understood names nothing.
///
/// # Errors
/// From the input.
pub fn read_list(
    input: impl BufRead,
    wanted: &dyn Fn(&Sha256Digest) -> bool,
) -> io::Result<HashMap<Sha256Digest, Named>> {
    let mut found = HashMap::new();
    let mut lines = Lines::new(input);
    let mut stanza = Stanza::default();
    while let Some(line) = lines.next()? {
        match line {
            Line::TooLong => stanza.broken = true,
            Line::Text(b"") => std::mem::take(&mut stanza).finish(wanted, &mut found),
            Line::Text(line) => stanza.read(line),
        }
    }
    stanza.finish(wanted, &mut found);
    Ok(found)
}

#[derive(Default)]
struct Stanza {
    package: Option<String>,
    architecture: Option<String>,
    sha256: Option<Sha256Digest>,
    broken: bool,
}

impl Stanza {
    fn read(&mut self, line: &[u8]) {
        let word = |line: &[u8], field: &[u8]| -> Option<String> {
            let value = line.strip_prefix(field)?.trim_ascii();
            std::str::from_utf8(value).ok().map(str::to_owned)
        };
        if let Some(name) = word(line, b"Package:") {
            self.broken |= self.package.replace(name).is_some();
        } else if let Some(name) = word(line, b"Architecture:") {
            self.broken |= self.architecture.replace(name).is_some();
        } else if let Some(digest) = word(line, b"SHA256:") {
            match digest.parse() {
                Ok(digest) => self.broken |= self.sha256.replace(digest).is_some(),
                Err(_) => self.broken = true,
            }
        }
    }

    fn finish(self, wanted: &dyn Fn(&Sha256Digest) -> bool, found: &mut HashMap<Sha256Digest, Named>) {
        let Self {
            package: Some(package),
            architecture: Some(architecture),
            sha256: Some(sha256),
            broken: false,
        } = self
        else {
            return;
        };
        // They become parts of paths.
        let is_name = |text: &str| {
            !text.is_empty()
                && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+.-".contains(&byte))
        };
        if is_name(&package) && is_name(&architecture) && wanted(&sha256) {
            found.insert(sha256, Named { package, architecture });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wanted_and_whole() {
        let digest = |byte: u8| Sha256Digest([byte; 32]);
        let stanza = |name: &str, byte: u8| {
            format!("Package: {name}\nArchitecture: amd64\nSHA256: {}\nDescription: x\n y\n\n", digest(byte))
        };
        let mut text = [("hello", 1), ("other", 2), ("../evil", 3), ("twice", 4)]
            .map(|(name, byte)| stanza(name, byte))
            .concat();
        text.push_str(&format!("Package: a\nPackage: b\nArchitecture: all\nSHA256: {}\n\n", digest(5)));
        text.push_str(&format!("Package: cut\nSHA256: {}", digest(6)));
        let found = read_list(text.as_bytes(), &|found| *found != digest(2)).unwrap();
        let mut names: Vec<_> = found.values().map(|named| named.package.as_str()).collect();
        names.sort_unstable();
        assert_eq!(names, ["hello", "twice"]);
    }
}
