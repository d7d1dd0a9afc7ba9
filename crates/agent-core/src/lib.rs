//! The machine's side of Cordon as a state machine: what arrives and the time go in, what is to be done comes out.
//!
//! Owns every decision of `cordon-agent` that depends on more than one event: when to connect and how long to back
//! off, what to ask of the gate and in which order, what is kept until the server has it, when the inventory runs and
//! when the certificate is renewed. Deliberately has no IO, no clock, no randomness and no runtime of its own, so that
//! a test can play any history in any order; whoever runs it carries out the effects.
//!
//! The gate decides what the machine is. An agent that is wrong here is late, or repeats itself, which the gate and the
//! server bear; it cannot lift a restriction.
#![forbid(unsafe_code)]

mod agent;
mod certificate;
mod effect;
mod executions;
mod gate;
mod input;
mod inventory;
mod link;
mod previews;
mod random;
mod relay;

pub use agent::{Agent, Identity, Snapshot};
pub use certificate::Validity;
pub use effect::{Effect, Level, Notice, Timer};
pub use input::{Input, InventoryEnd, SystemFacts};
pub use link::LinkState;
