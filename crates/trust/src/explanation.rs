//! Why one file is, or is not, what a package shipped: asked by people.

use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use domain::digest::Sha256Digest;

use crate::content::{Content, ReadError, Reader};
use crate::inventory::{Error, Inventory};
use crate::packages::{Databases, PackageManager};
use crate::root::Places;
use crate::shipped::Shipped;

/// What the package databases say about one file, as the file is at this moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Explanation {
    /// A package lists a file here.
    Packaged {
        /// Whose database says so.
        manager: PackageManager,
        /// The package, as its manager names it.
        package: String,
        /// How the file compares with what the package shipped.
        content: Comparison,
        /// The content that is there.
        sha256: Sha256Digest,
    },
    /// No installed package shipped a file here.
    NotPackaged,
    /// The file cannot be read, for this reason.
    Unreadable(String),
}

/// How a file compares with what its package shipped, from best to worst.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Comparison {
    /// It is that.
    Same,
    /// It is something else.
    Other,
    /// The package has no digest that proves anything, as old packages of rpm.
    Unknown,
}

impl Inventory {
    /// Compares the file that an absolute path leads to, all links followed, with what packages shipped there. Asks the
    /// database, not the last scan: what a package brought since then is explained, though no baseline has it yet.
    ///
    /// # Errors
    /// [`Error::Database`]. That the file cannot be read is an answer, not an error.
    pub fn explain(&self, path: &Path) -> Result<Explanation, Error> {
        let databases = Databases::open(&self.root)?;
        let mut places = Places::new(&self.root, databases.diversions());
        let never = AtomicBool::new(false);
        let read = places.follow(path.as_os_str().as_bytes()).map_err(ReadError::from).and_then(|real| {
            let content = Reader::new(&never).read(&self.root.outside(&real))?;
            Ok((real, content))
        });
        match read {
            Ok((real, content)) => explain_content(&databases, &mut places, &real, &content),
            Err(ReadError::Stopped) => Err(Error::Stopped),
            Err(ReadError::Unreadable(reason)) => Ok(Explanation::Unreadable(reason.to_string())),
        }
    }
}

/// Several packages may have shipped the path, when one took it over from another: the best of them is named.
fn explain_content(
    databases: &Databases,
    places: &mut Places<'_>,
    real: &[u8],
    content: &Content,
) -> Result<Explanation, Error> {
    let name = |path: &[u8]| path.rsplit(|byte| *byte == b'/').next().map(<[u8]>::to_vec);
    let real_name = name(real);
    let is_diverted_to = places.is_diverted_to(real);
    let mut best = None;
    for package in databases.packages() {
        databases.list_files(package, &mut |listed, shipped| {
            // Resolving every path would take a second; a file lies under its listed name unless it is diverted.
            if !is_diverted_to && name(listed) != real_name {
                return;
            }
            if places.real_place(package, listed).is_ok_and(|place| place == real) {
                let comparison = match shipped {
                    Shipped::Weak => Comparison::Unknown,
                    shipped if content.is(shipped) => Comparison::Same,
                    Shipped::Md5(_) | Shipped::Sha256(_) => Comparison::Other,
                };
                if best.is_none_or(|(before, _)| comparison < before) {
                    best = Some((comparison, package));
                }
            }
        })?;
    }
    Ok(best.map_or(Explanation::NotPackaged, |(comparison, package)| Explanation::Packaged {
        manager: package.manager(),
        package: package.name().to_owned(),
        content: comparison,
        sha256: content.sha256,
    }))
}
