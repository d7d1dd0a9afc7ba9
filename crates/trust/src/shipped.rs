//! A file as a package lists it.

use domain::digest::Sha256Digest;

use crate::dpkg::Md5Digest;

/// The longest path, in bytes: the kernel's `PATH_MAX`.
const PATH_BYTES_MAX: usize = 4096;

/// By what a package knows the content that it shipped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Shipped {
    /// All that dpkg has: good enough to notice damage when the SHA-256 is taken.
    Md5(Md5Digest),
    /// What rpm has.
    Sha256(Sha256Digest),
    /// What rpm had once, or has under another algorithm. Vouches for nothing.
    Weak,
}

/// A path that a package may list, as absolute path: no NUL, no empty, `.` or `..` components.
pub(crate) fn clean_path(relative: &[u8]) -> Option<Vec<u8>> {
    let possible = relative.len() < PATH_BYTES_MAX
        && !relative.contains(&0)
        && relative.split(|byte| *byte == b'/').all(|component| !matches!(component, b"" | b"." | b".."));
    possible.then(|| [b"/", relative].concat())
}
