//! `InRelease`: what a repository's key signs.

use domain::digest::Sha256Digest;

/// The most lists that are taken of one description: each architecture and component has one.
const LISTS_MAX: usize = 1_024;

/// A list of packages, as a description names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListEntry {
    /// Below the description, `main/binary-amd64/Packages`.
    pub name: String,
    /// Its length, not compressed, in bytes.
    pub bytes: u64,
    /// Its content.
    pub sha256: Sha256Digest,
}

/// Reads the lists of binary packages, not compressed, of which the SHA-256 is given. What cannot be understood names
/// nothing. The text must be verified already.
pub fn read_release(text: &[u8]) -> Vec<ListEntry> {
    let mut entries = Vec::new();
    let mut in_digests = false;
    for line in text.split(|byte| *byte == b'\n') {
        if !line.first().is_some_and(u8::is_ascii_whitespace) {
            in_digests = line.trim_ascii_end() == b"SHA256:";
        } else if in_digests && entries.len() < LISTS_MAX {
            entries.extend(std::str::from_utf8(line).ok().and_then(read_entry));
        }
    }
    entries
}

fn read_entry(line: &str) -> Option<ListEntry> {
    let mut words = line.split_ascii_whitespace();
    let (sha256, bytes, name) = (words.next()?, words.next()?, words.next()?);
    let is_list =
        name.ends_with("/Packages") && name.contains("/binary-") && !name.split('/').any(|part| part == "..");
    let entry = ListEntry { name: name.to_owned(), bytes: bytes.parse().ok()?, sha256: sha256.parse().ok()? };
    (is_list && words.next().is_none()).then_some(entry)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_lists_of_binary_packages_with_their_sha256() {
        let digest = "ab".repeat(32);
        let text = format!(
            "Origin: Debian\nMD5Sum:\n {digest} 7 main/binary-amd64/Packages\nSHA256:\n \
             {digest} 12 main/binary-amd64/Packages\n {digest} 12 main/binary-amd64/Packages.xz\n \
             {digest} 12 main/source/Sources\n {digest} x contrib/binary-amd64/Packages\n short 1 \
             main/binary-i386/Packages\n {digest} 1 ../main/binary-i386/Packages\n\
             Description: {digest} 9 late/binary-amd64/Packages\n"
        );
        let found = read_release(text.as_bytes());
        assert_eq!(
            found,
            [ListEntry {
                name: "main/binary-amd64/Packages".to_owned(),
                bytes: 12,
                sha256: digest.parse().unwrap()
            }]
        );
        assert_eq!(read_release(b"\xff\n \xff\nSHA256:\n \xff 1 a\n"), []);
    }
}
