//! The nouns of Cordon and their rules.
//!
//! Owns what a word means: machine, machine action, restriction, allow policy, decision, permission, rate limit.
//! Deliberately has no IO, clock, async or serialization: wire and disk formats live in `api-types`,
//! `agent-protocol`, `orders` and `store`, which convert to and from these types.
#![forbid(unsafe_code)]

pub mod allow_policy;
pub mod app;
pub mod audit_entry;
pub mod decision;
pub mod digest;
pub mod enrollment_token;
pub mod execution_event;
pub mod impact_preview;
pub mod machine;
pub mod machine_action;
pub mod machine_group;
pub mod permission;
pub mod policy_settings;
pub mod program_class;
pub mod program_start;
pub mod rate_limit;
pub mod restriction;
pub mod role;
pub mod session;
pub mod settings;
pub mod time;
pub mod user;
