//! The bypass matrix as it runs inside of a throw-away guest: the frame, and the rows that are written with it.
//!
//! Owns the rows, what is expected of each, and the machine as a row sees it. `cargo xtask vm` makes the guest, puts the
//! program `cordon-matrix` into it, and reads what it tells. README.md of this crate says how a row is added.
#![forbid(unsafe_code)]

pub mod gate;
pub mod guest;
pub mod lab;
pub mod log;
pub mod peer;
pub mod report;
pub mod row;
pub mod rows;
pub mod run;
pub mod tries;
