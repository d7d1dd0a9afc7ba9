//! The keys that apt believes.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// The most keyrings that are kept.
const KEYRINGS_MAX: usize = 64;
/// The longest keyring, in bytes; Debian's largest has 60 KB.
const KEYRING_BYTES_MAX: u64 = 1 << 20;
/// The keyrings that apt believes, as binary `OpenPGP`: `/etc/apt/trusted.gpg`, `trusted.gpg.d`, and what sources name as
/// `Signed-By` (`sources.list(5)`). What cannot be read counts for nothing.
pub fn keyrings(root: &Path) -> Vec<Vec<u8>> {
    let apt = root.join("etc/apt");
    let mut files = vec![apt.join("trusted.gpg")];
    files.extend(files_in(&apt.join("trusted.gpg.d"), &["gpg", "asc"]));
    let mut sources = vec![apt.join("sources.list")];
    sources.extend(files_in(&apt.join("sources.list.d"), &["list", "sources"]));
    for source in sources {
        let text = read(&source).unwrap_or_default();
        let named = String::from_utf8_lossy(&text).lines().flat_map(signed_by).collect::<Vec<_>>();
        files.extend(named.iter().map(|path| root.join(path.trim_start_matches('/'))));
    }
    files.sort();
    files.dedup();
    files.truncate(KEYRINGS_MAX);
    let read = |path: &PathBuf| read(path).ok().and_then(|bytes| binary(&bytes));
    files.iter().filter_map(read).collect()
}

/// Files of a folder with one of these extensions, sorted.
fn files_in(folder: &Path, extensions: &[&str]) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let fits = |path: &PathBuf| {
        let extension = path.extension().and_then(|extension| extension.to_str());
        extension.is_some_and(|extension| extensions.contains(&extension))
    };
    let mut files: Vec<_> = entries.filter(fits).collect();
    files.sort();
    files
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(KEYRING_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The keyrings that a line of a source names: `Signed-By: FILE ...`, or `[signed-by=FILE,...]` in the older form.
fn signed_by(line: &str) -> Vec<String> {
    let line = line.trim();
    let lower = line.to_ascii_lowercase();
    let start = match lower.strip_prefix("signed-by:") {
        Some(_) => Some("signed-by:".len()),
        None if lower.starts_with("deb") => lower.find("signed-by=").map(|at| at + "signed-by=".len()),
        None => None,
    };
    let Some(rest) = start.and_then(|start| line.get(start..)) else { return Vec::new() };
    // The options of the older form end with a bracket or with the next option.
    let paths = rest.trim_start().split([' ', '\t', ',', ']']);
    paths.take_while(|path| path.starts_with('/')).map(str::to_owned).collect()
}

/// A keyring without its armor (RFC 9580, section 6), which `gpgv` does not read.
fn binary(keyring: &[u8]) -> Option<Vec<u8>> {
    const BEGIN: &str = "-----BEGIN PGP PUBLIC KEY BLOCK-----";
    let Some(text) = std::str::from_utf8(keyring).ok().filter(|text| text.contains(BEGIN)) else {
        return (!keyring.is_empty()).then(|| keyring.to_vec());
    };
    let mut bytes = Vec::new();
    for block in text.split(BEGIN).skip(1) {
        let block = block.split("-----END").next()?;
        // Headers, then an empty line, then lines of base64, then a checksum.
        let body = block.lines().skip(1).skip_while(|line| !line.trim().is_empty());
        let body: String = body.map(str::trim).filter(|line| !line.starts_with('=')).collect();
        bytes.extend(STANDARD.decode(body).ok()?);
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keyrings_are_those_that_apt_believes() {
        let root = tempfile::tempdir().unwrap();
        let write = |name: &str, content: &str| {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        };
        assert_eq!(keyrings(root.path()), Vec::<Vec<u8>>::new());
        let armored = format!(
            "-----BEGIN PGP PUBLIC KEY BLOCK-----\nVersion: x\n\n{}\n=abcd\n-----END PGP PUBLIC KEY BLOCK-----\n",
            STANDARD.encode("armored")
        );
        write("etc/apt/trusted.gpg.d/a.asc", &armored);
        write("etc/apt/trusted.gpg.d/b.gpg", "plain");
        write("etc/apt/trusted.gpg.d/c.txt", "no keyring");
        write(
            "etc/apt/sources.list",
            "deb [arch=amd64 signed-by=/keys/old.gpg] https://example.org stable main\n",
        );
        write("etc/apt/sources.list.d/new.sources", "Types: deb\nSigned-By: /keys/new.gpg\n");
        write("keys/old.gpg", "old");
        write("keys/new.gpg", "new");
        write("keys/other.gpg", "of nobody");
        let mut found = keyrings(root.path());
        found.sort();
        assert_eq!(found, [&b"armored"[..], b"new", b"old", b"plain"]);
    }

    #[test]
    fn sources_name_keyrings_in_two_ways() {
        for (line, expected) in [
            ("Signed-By: /a.gpg", &["/a.gpg"][..]),
            ("signed-by:/a.gpg /b.gpg", &["/a.gpg", "/b.gpg"]),
            ("deb [ Signed-By=/a.gpg,/b.gpg ] https://x y", &["/a.gpg", "/b.gpg"]),
            ("deb [signed-by=/a.gpg arch=amd64] https://x y", &["/a.gpg"]),
            ("# deb [signed-by=/a.gpg] https://x y", &[]),
            ("Signed-By: -----BEGIN", &[]),
            ("Signed-By:", &[]),
            ("deb https://x y", &[]),
        ] {
            assert_eq!(signed_by(line), expected, "{line}");
        }
        assert_eq!(binary(b"-----BEGIN PGP PUBLIC KEY BLOCK-----\n\n!!\n-----END"), None);
        assert_eq!(binary(b""), None);
    }
}
