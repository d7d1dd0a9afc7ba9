//! `cordon-agent`: the unprivileged program that connects a machine to its server.
//!
//! Owns the network, the machine's credential, the inventory's schedule and what people are told. Carries signed orders
//! to the gate and its signed answers back, and believes neither side more than the protocol allows. What to do when is
//! decided in `agent-core`; this crate carries it out. Deliberately cannot restrict or release anything.
#![forbid(unsafe_code)]

pub mod arguments;
mod commands;
mod config;
mod credential;
mod gate;
mod https;
mod inventory;
mod people;
mod run;
mod run_state;
mod state_dir;
mod system;
mod tls;

pub use commands::execute;
