//! The store on real SQLite files: what each operation keeps, what a commit holds, and what survives when something
//! breaks. Deliberately reaches no further inside than `Store` and the functions of a transaction, except where a test
//! plays another program on the same file.
#![cfg(test)]

mod fixture;

mod app;
mod audit_entry;
mod enrollment_token;
mod execution_event;
mod impact_preview;
mod machine;
mod machine_action;
mod machine_action_bulk;
mod machine_group;
mod machine_ip;
mod policy;
mod rate_limit;
mod role;
mod session;
mod setting;
mod user;

mod commit;
mod crash;
mod desire;
mod fault;
mod list;
mod list_contract;
mod list_page;
mod model;
