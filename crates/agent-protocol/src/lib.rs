//! Frames between agent and server: one JSON text message of the WebSocket is one frame.
//!
//! Owns the shapes, the version and the limits; every field of a frame that arrives is capped by `check` before anyone
//! acts on it. Deliberately knows nothing of sockets, and carries signed documents as opaque text: only `orders`
//! decides whether to believe them.
//!
//! # Version history
//! - 1 (2026-11): the first.
//! - 2 (2026-11): an order may have an end (`orders::Order::ends_at`). To machines of version 1 such an order is
//!   unreadable: they do not obey it, and send no receipt.
//! - 3 (2026-12): break-glass. The server sends a statement of codes (`FromServer::BreakGlass`), to agents of this
//!   version or later only; they report what the gate holds, and its log of codes that were used.
//! - 4 (2026-12): impact previews are asked for (`FromServer::Preview`), of agents of this version or later only, and
//!   answered; events say more.
#![forbid(unsafe_code)]

mod enrollment;
mod from_agent;
mod from_server;
mod limits;
mod preview;

pub use enrollment::{EnrollReply, EnrollRequest, RenewReply, RenewRequest};
pub use from_agent::{
    BreakGlassReport, ExecutionEvent, FromAgent, Heartbeat, Hello, Interface, InventorySummary,
    RestrictionReport,
};
pub use from_server::{FromServer, Welcome};
pub use limits::{FrameError, Limited, decode, encode};
pub use preview::{
    ImpactPreview, PREVIEW_FILES_MAX, PREVIEW_PIDS_MAX, PreviewReport, PreviewState, RefusedFile,
};

/// The protocol's version: a server serves every version up to its own, an agent says its own in [`Hello`].
pub const PROTOCOL_VERSION: u32 = 4;
/// The longest frame that a server accepts from an agent, in bytes.
pub const FROM_AGENT_BYTES_MAX: usize = 1024 * 1024;
/// The longest frame that an agent accepts from its server, in bytes: room for a signed policy.
pub const FROM_SERVER_BYTES_MAX: usize = 6 * 1024 * 1024;
/// The path of the agents' WebSocket.
pub const LINK_PATH: &str = "/agent/v1/link";
/// The path of enrollment, on the public listener.
pub const ENROLL_PATH: &str = "/agent/v1/enroll";
/// The path of certificate renewal, on the agents' listener.
pub const RENEW_PATH: &str = "/agent/v1/renew";
