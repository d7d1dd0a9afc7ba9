//! `cordon-server` as a library, so that tests start the real server in their own process.
//!
//! Owns HTTP, TLS, tokens, certificates and the connections of machines. Deliberately holds no rules of its own about
//! machines and actions: those are use cases of `control-plane`.
//!
//! To read: [`server`] starts everything; `router` lists the API; `issuer` makes and checks tokens; `agents` enrolls
//! machines and keeps their connections.
#![forbid(unsafe_code)]

pub mod config;
pub mod init;
pub mod openapi;
pub mod router;
pub mod server;

mod agents;
mod attempts;
mod auth;
mod background;
mod certificate_authority;
mod data_dir;
mod error;
mod external_issuer;
mod issuer;
mod query;
mod routes;
mod state;
mod tls;
mod token;
