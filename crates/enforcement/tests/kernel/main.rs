//! The fanotify backend against the real kernel.
//!
//! Each test runs in a process and a private mount namespace of its own and marks only the mounts of that namespace, so
//! nothing outside of it is ever restricted. Needs root and a C compiler; what cannot run fails.
#![cfg(test)]

mod cache;
mod filesystem;
mod foreign;
mod gaps;
mod limits;
mod overlay;
mod rows;
mod support;
mod switch;
