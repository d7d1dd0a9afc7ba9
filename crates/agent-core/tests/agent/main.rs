//! The agent as a whole: its behavior in tables, and whole histories against a simulated gate and server.
#![cfg(test)]
#![expect(
    clippy::string_slice,
    clippy::wildcard_enum_match_arm,
    reason = "a test names what it expects; anything else fails it"
)]

mod behavior;
mod gate;
mod server;
mod simulation;

use agent_core::Identity;
use domain::machine::MachineId;
use orders::{SigningKey, TrustedKeys};

const MACHINE: MachineId = MachineId([7; 20]);

fn order_key() -> SigningKey {
    SigningKey::from_seed(&[1; 32])
}

fn identity() -> Identity {
    Identity { machine: MACHINE, keys: TrustedKeys::new([order_key().public_key()]) }
}
