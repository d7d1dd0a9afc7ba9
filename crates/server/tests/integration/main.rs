//! The server as its clients see it: over real HTTPS, with a real database, and with machines that speak the real
//! agent protocol. A file for each noun; `routes` holds what is true of every route.
#![cfg(test)]

mod harness;

mod routes;

mod agents;
mod machine;
mod machine_action;

mod app;
mod audit_entry;
mod enrollment_token;
mod execution_event;
mod external_issuer;
mod policy;
mod sign_in;
mod token;
mod token_attack;

mod body;
mod connection;
mod list;
mod openapi;
mod rate_limit;
mod restart;
