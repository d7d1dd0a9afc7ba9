//! JSON of the HTTP API: what goes over the wire between `server` and its clients, and nothing else.
//!
//! Owns field names, spellings and date formats, and the conversions from `domain`. Deliberately knows no HTTP.
//! Unknown fields are ignored when reading, because the vendor's clients send extras and servers grow.
#![forbid(unsafe_code)]

pub mod app;
pub mod audit_entry;
pub mod break_glass;
pub mod bulk;
pub mod date_time;
pub mod duration;
pub mod enrollment_token;
pub mod error;
pub mod execution_event;
pub mod impact_preview;
pub mod machine;
pub mod machine_action;
pub mod machine_group;
pub mod odata;
pub mod policy;
pub mod policy_settings;
pub mod role;
pub mod settings;
mod text;
pub mod token;
pub mod user;
