//! The handlers, a file for each noun: parse, call the use case, convert.
//!
//! Deliberately without rules: who may call is checked in front of them, what then happens is `control-plane`'s.

pub(crate) mod break_glass;
pub(crate) mod bulk;
pub(crate) mod machine;
pub(crate) mod machine_action;

pub(crate) mod app;
pub(crate) mod audit_entry;
pub(crate) mod enrollment_token;
pub(crate) mod execution_event;
pub(crate) mod impact_preview;
pub(crate) mod machine_group;
pub(crate) mod policy;
pub(crate) mod role;
pub(crate) mod settings;
pub(crate) mod user;
pub(crate) mod vendor;

pub(crate) mod metadata;

pub(crate) mod body;
pub(crate) mod request;

/// The longest body of a request, in bytes: room for a comment of the greatest length with every character escaped.
const BODY_BYTES_MAX: usize = 128 * 1024;
