//! Compiles an allow policy and evaluates what is known about one execution: pure, total, without IO.
//!
//! The same code answers on the machine and in the server's previews. Also owns the exact bytes of the package
//! baseline ([`baseline`]), because agent and gate must agree on them and neither may use the other.
//! Every rule is about content, so every verdict can be pushed to a kernel map ahead of time, with the program's classes
//! ([`classes`]). How an interpreter starts ([`start`]) is known only at that moment.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

pub mod baseline;
pub mod classes;
mod evaluate;
mod manifests;
pub mod start;

pub use evaluate::CompiledPolicy;
pub use manifests::Manifests;
