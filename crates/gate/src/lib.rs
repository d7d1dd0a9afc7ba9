//! `cordon-gate`: the root daemon that restricts this machine, without a network.
//!
//! Owns the fence, the kept order and policy, the package baseline, and the decision to restrict or release. Obeys
//! only orders that the control plane signed, and ends a restriction without another order only when its own says so, or
//! for a break-glass code. Everything that arrives on its socket is hostile. Deliberately knows nothing of servers, certificates or packages.
//!
//! A gate that ends while the machine is restricted, in whatever way, SIGTERM included, lifts nothing. At the tiers T1
//! and T2 the kernel goes on by itself; at tier T3 the keeper and the service manager have what the restriction hangs
//! by, and nothing new runs until the next start has taken it over, which it does before anything else. So the service
//! manager must start it again at once and always.
#![forbid(unsafe_code)]

/// Writes a line of the gate's log, which is its standard error. A log that takes nothing must not end the gate.
macro_rules! log {
    ($($words:tt)*) => {
        drop(std::io::Write::write_fmt(
            &mut std::io::stderr(),
            format_args!("cordon-gate: {}\n", format_args!($($words)*)),
        ))
    };
}

pub mod break_glass;
pub mod clock;
pub mod config;
pub mod console;
pub mod deadman;
pub mod end;
pub mod frozen;
pub mod gate;
pub mod judge;
pub mod manifests;
pub mod motd;
pub mod preview;
pub mod running;
pub mod socket;
pub mod state;
pub mod survival;
pub mod sweep;
pub mod text;
pub mod tier;
pub mod transaction;
pub mod unit_file;
pub mod vital;
