//! The real gate, a process of its own, asked over its socket with really signed orders.
//!
//! Each test runs in a process and a private mount namespace of its own, and so does its gate, which marks only the
//! mounts of that namespace: nothing outside of it is ever restricted. Needs root; what cannot run fails.
#![cfg(test)]
#![expect(clippy::wildcard_enum_match_arm, reason = "a test names what it expects; anything else fails it")]

mod around;
mod break_glass;
mod crashes;
mod denials;
mod ends;
mod keeper;
mod manifests;
mod orders;
mod peers;
mod previews;
mod settings;
mod state;
mod support;
mod survival;
mod transactions;
mod unit_file;
