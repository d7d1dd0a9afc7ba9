//! The server as its clients see it: over real HTTPS, with a real database, and with machines that speak the real
//! agent protocol. A file for each noun; `routes` holds what is true of every route.
#![cfg(test)]

mod harness;

mod contract;
mod permission_matrix;
mod routes;

mod agents;
mod machine;
mod machine_action;

mod access;
mod app;
mod audit_entry;
mod break_glass;
mod bulk;
mod enrollment_token;
mod execution_event;
mod external_issuer;
mod impact_preview;
mod machine_group;
mod policy;
mod role;
mod settings;
mod sign_in;
mod token;
mod token_attack;
mod user;

mod body;
mod connection;
mod list;
mod openapi;
mod rate_limit;
mod restart;
