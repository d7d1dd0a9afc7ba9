//! The directory that stands for `/`, and the real paths below it.
//!
//! Paths are bytes here, absolute and as seen from inside of the root. Resolving is done by hand, because the kernel
//! resolves absolute links from the real root.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use crate::dpkg::Diversion;
use crate::packages::Package;

/// The directory that stands for `/`: `/` itself, or a file system that is looked at from outside.
#[derive(Debug, Clone)]
pub(crate) struct Root(pub(crate) PathBuf);

impl Root {
    /// Where an absolute path of the root lies outside of it.
    pub(crate) fn outside(&self, path: &[u8]) -> PathBuf {
        self.0.join(path_of(path.strip_prefix(b"/").unwrap_or(path)))
    }

    /// The path with all links followed, that of the last component too.
    ///
    /// # Errors
    /// From the file system; `ELOOP` beyond as many links as the kernel follows.
    pub(crate) fn follow(&self, path: &[u8]) -> io::Result<Vec<u8>> {
        Resolver::new(self).follow(path)
    }
}

pub(crate) fn path_of(bytes: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(bytes))
}

/// As many links as the kernel follows in one path.
const LINKS_MAX: u32 = 40;
/// The longest path while links are being followed.
const WALK_BYTES_MAX: usize = 16 * 1024;
/// Directories remembered at once: a few megabytes. Beyond it all are forgotten, which costs time only.
const REMEMBERED_MAX: usize = 20_000;

/// Follows symbolic links, and remembers where directories really are for as long as it lives.
#[derive(Debug)]
struct Resolver<'a> {
    root: &'a Root,
    /// From a directory as named to the real one. The root itself is the empty path.
    known: HashMap<Box<[u8]>, Box<[u8]>>,
}

impl<'a> Resolver<'a> {
    fn new(root: &'a Root) -> Self {
        Self { root, known: HashMap::new() }
    }

    /// The path with the links of its directories followed, its last component as it is.
    ///
    /// # Errors
    /// From the file system, when a directory is missing or closed.
    fn real_path(&mut self, path: &[u8]) -> io::Result<Vec<u8>> {
        let cut = path.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
        let (directory, name) = path.split_at(cut);
        if let Some(real) = self.known.get(directory) {
            return Ok([real, name].concat());
        }
        let real = self.follow(directory)?;
        if self.known.len() >= REMEMBERED_MAX {
            self.known.clear();
        }
        let path = [&real, name].concat();
        self.known.insert(directory.into(), real.into());
        Ok(path)
    }

    /// The path with all links followed, that of the last component too.
    ///
    /// # Errors
    /// From the file system; `ELOOP` beyond as many links as the kernel follows.
    fn follow(&self, path: &[u8]) -> io::Result<Vec<u8>> {
        let mut real = Vec::new();
        let mut rest = path.to_vec();
        // Start from the directory above where that one is known: siblings are many.
        if let Some(cut) = path.iter().rposition(|byte| *byte == b'/')
            && let (above, name) = path.split_at(cut)
            && let Some(known) = self.known.get(above)
        {
            (real, rest) = (known.to_vec(), name.to_vec());
        }
        let mut links = 0;
        while !rest.is_empty() {
            let end = rest.iter().position(|byte| *byte == b'/').unwrap_or(rest.len());
            let component: Vec<u8> = rest.drain(..end).collect();
            // The slash behind it, where there is one.
            rest.drain(..rest.len().min(1));
            match component.as_slice() {
                b"" | b"." => continue,
                b".." => {
                    real.truncate(real.iter().rposition(|byte| *byte == b'/').unwrap_or(0));
                    continue;
                }
                _ => {}
            }
            let above = real.len();
            real.push(b'/');
            real.extend_from_slice(&component);
            match std::fs::read_link(self.root.outside(&real)) {
                Ok(target) => {
                    links += 1;
                    let target = target.as_os_str().as_bytes();
                    if links > LINKS_MAX || target.len() + rest.len() > WALK_BYTES_MAX {
                        return Err(Errno::LOOP.into());
                    }
                    real.truncate(if target.starts_with(b"/") { 0 } else { above });
                    rest = [target, b"/", &rest].concat();
                }
                // What readlink says about anything that is there and not a link.
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => {}
                Err(error) => return Err(error),
            }
        }
        Ok(real)
    }
}

/// Where packaged files really are.
#[derive(Debug)]
pub(crate) struct Places<'a> {
    resolver: Resolver<'a>,
    /// From the real path that is claimed to the real path instead, and the name of the package that claims it.
    diversions: HashMap<Vec<u8>, (Vec<u8>, &'a [u8])>,
}

impl<'a> Places<'a> {
    pub(crate) fn new(root: &'a Root, diversions: &'a [Diversion]) -> Self {
        let mut resolver = Resolver::new(root);
        let resolve = |diversion: &'a Diversion| {
            // Where a directory does not exist, no file is diverted.
            let from = resolver.real_path(&diversion.from).ok()?;
            Some((from, (resolver.real_path(&diversion.to).ok()?, diversion.package.as_slice())))
        };
        let diversions = diversions.iter().filter_map(resolve).collect();
        Self { resolver, diversions }
    }

    /// The real path of a file that the package lists by this path. Diversions are dpkg's.
    ///
    /// # Errors
    /// From the file system, when a directory is missing or closed.
    pub(crate) fn real_place(&mut self, package: Package<'_>, listed: &[u8]) -> io::Result<Vec<u8>> {
        let real = self.resolver.real_path(listed)?;
        let Package::Dpkg(package) = package else { return Ok(real) };
        Ok(match self.diversions.get(&real) {
            Some((to, claimed_by)) if *claimed_by != package.name.as_bytes() => to.clone(),
            _ => real,
        })
    }

    pub(crate) fn is_diverted_to(&self, real: &[u8]) -> bool {
        self.diversions.values().any(|(to, _)| to == real)
    }

    /// See [`Resolver::follow`].
    pub(crate) fn follow(&self, path: &[u8]) -> io::Result<Vec<u8>> {
        self.resolver.follow(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn links_are_followed_inside_the_root_and_loops_end() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root(dir.path().to_owned());
        fs::create_dir_all(dir.path().join("usr/bin")).unwrap();
        fs::create_dir_all(dir.path().join("usr/lib/deep")).unwrap();
        symlink("usr/bin", dir.path().join("bin")).unwrap();
        symlink("/usr/lib", dir.path().join("lib")).unwrap();
        symlink("../../../../lib/./deep", dir.path().join("usr/up")).unwrap();
        symlink("loop", dir.path().join("loop")).unwrap();
        fs::write(dir.path().join("usr/bin/ls"), "").unwrap();
        symlink("ls", dir.path().join("usr/bin/dir")).unwrap();

        let mut resolver = Resolver::new(&root);
        for _ in 0..2 {
            assert_eq!(resolver.real_path(b"/bin/ls").unwrap(), b"/usr/bin/ls");
            assert_eq!(resolver.real_path(b"/bin/dir").unwrap(), b"/usr/bin/dir");
            assert_eq!(resolver.real_path(b"/lib/absent").unwrap(), b"/usr/lib/absent");
            assert_eq!(resolver.real_path(b"/usr/up/x").unwrap(), b"/usr/lib/deep/x");
            assert_eq!(resolver.real_path(b"/top").unwrap(), b"/top");
            assert_eq!(resolver.follow(b"/bin/dir").unwrap(), b"/usr/bin/ls");
            let mut failure =
                |path: &[u8]| Errno::from_io_error(&resolver.real_path(path).unwrap_err()).unwrap();
            assert_eq!(failure(b"/loop/x"), Errno::LOOP);
            assert_eq!(failure(b"/absent/x"), Errno::NOENT);
        }
    }
}
