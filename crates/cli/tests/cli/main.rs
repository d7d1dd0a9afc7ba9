//! Runs the real program against an HTTPS server that speaks the contract.
//!
//! The server here is a stand-in for one thing only: what the program makes of replies (exit codes, paging, waiting,
//! output, certificates). That the program and the real server understand each other is shown by `cargo xtask demo`.
#![expect(clippy::unwrap_used, reason = "a test may panic, and so may what helps it")]

mod admin;
mod apply;
mod bulk;
mod help;
mod list;
mod login;
mod machine;
mod manifest;
mod policy;
mod preview;
mod program;
mod stand_in;
