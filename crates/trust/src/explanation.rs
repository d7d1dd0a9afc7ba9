//! Why one file is, or is not, what a package shipped: asked by people.

use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use domain::digest::Sha256Digest;

use crate::content::{Content, ReadError, Reader};
use crate::dpkg::Database;
use crate::inventory::{Error, Inventory};
use crate::root::Places;

/// What the package database says about one file, as the file is at this moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Explanation {
    /// This package shipped exactly this content here.
    Shipped {
        /// The package, with its architecture where several can be installed.
        package: String,
        /// The content.
        sha256: Sha256Digest,
    },
    /// This package shipped another content here.
    Modified {
        /// The package, with its architecture where several can be installed.
        package: String,
        /// The content that is there.
        sha256: Sha256Digest,
    },
    /// No installed package shipped a file here.
    NotPackaged,
    /// The file cannot be read, for this reason.
    Unreadable(String),
}

impl Inventory {
    /// Compares the file that an absolute path leads to, all links followed, with what packages shipped there. Asks the
    /// database, not the last scan: what a package brought since then is explained, though no baseline has it yet.
    ///
    /// # Errors
    /// [`Error::Database`]. That the file cannot be read is an answer, not an error.
    pub fn explain(&self, path: &Path) -> Result<Explanation, Error> {
        let database = Database::open(&self.root)?;
        let mut places = Places::new(&self.root, &database.diversions);
        let never = AtomicBool::new(false);
        let read = places.follow(path.as_os_str().as_bytes()).map_err(ReadError::from).and_then(|real| {
            let content = Reader::new(&never).read(&self.root.outside(&real))?;
            Ok((real, content))
        });
        match read {
            Ok((real, content)) => explain_content(&database, &mut places, &real, &content),
            Err(ReadError::Stopped) => Err(Error::Stopped),
            Err(ReadError::Unreadable(reason)) => Ok(Explanation::Unreadable(reason.to_string())),
        }
    }
}

/// Several packages may have shipped the path, when one took it over from another: any of them will do.
fn explain_content(
    database: &Database,
    places: &mut Places<'_>,
    real: &[u8],
    content: &Content,
) -> Result<Explanation, Error> {
    let name = |path: &[u8]| path.rsplit(|byte| *byte == b'/').next().map(<[u8]>::to_vec);
    let real_name = name(real);
    let is_diverted_to = places.is_diverted_to(real);
    let sha256 = content.sha256;
    let mut explanation = Explanation::NotPackaged;
    for package in &database.status.packages {
        database.list_files(package, &mut |listed, md5| {
            // Resolving every path would take a second; a file lies under its listed name unless it is diverted.
            if !is_diverted_to && name(listed) != real_name {
                return;
            }
            if places.real_place(package, listed).is_ok_and(|place| place == real) {
                let package = package.key.clone();
                if md5 == content.md5 {
                    explanation = Explanation::Shipped { package, sha256 };
                } else if explanation == Explanation::NotPackaged {
                    explanation = Explanation::Modified { package, sha256 };
                }
            }
        })?;
    }
    Ok(explanation)
}
