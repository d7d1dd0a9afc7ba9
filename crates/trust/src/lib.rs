//! What the machine's vendor vouches for: the databases of dpkg and rpm, the digests of packaged files, and the
//! inventory of both.
//!
//! Reads the databases' files directly, so that for the inventory nothing is executed and nothing else is trusted. rpm carries SHA-256.
//! dpkg carries MD5 only: a file counts when its content has the MD5 that its package shipped, and from then on its
//! SHA-256, taken in the same read, is its identity. Of packages that are not installed yet, [`apt`] tells what a
//! repository's signature vouches for. This crate does not decide what may run, does not talk to the gate and reads no
//! clock; whoever runs a scan chooses when and at which priority.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

pub mod apt;
mod content;
pub mod dpkg;
mod explanation;
mod inventory;
mod packages;
mod root;
pub mod rpm;
mod shipped;
mod state;

pub use content::Unreadable;
pub use explanation::{Comparison, Explanation};
pub use inventory::{Error, Inventory, Progress, ScanReport, Unvouched};
pub use packages::{DatabaseError, PackageManager};
pub use shipped::Shipped;
