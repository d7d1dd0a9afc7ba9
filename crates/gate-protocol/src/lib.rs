//! Frames between the agent and the gate on the machine's local socket.
//!
//! Owns the framing and its limits, for both sides. The gate believes nothing that arrives here: orders and policies
//! are signed by the control plane and verified by the gate, the baseline is frozen while the machine is restricted,
//! and the peer's user is checked by the kernel (`SO_PEERCRED`). No frame of the agent lifts a restriction:
//! [`Request::BreakGlass`] is for root, and needs a code that neither the agent nor the gate has.
//!
//! On the wire a frame is its length in bytes (`u32`, big endian), then JSON of [`Request`] or [`Reply`].
#![forbid(unsafe_code)]

use std::io::{self, Read, Write};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// The longest frame, in bytes: room for a signed policy in base64.
pub const FRAME_BYTES_MAX: usize = 6 * 1024 * 1024;
/// The longest piece of a baseline in one frame, in bytes before base64.
pub const CHUNK_BYTES_MAX: usize = 256 * 1024;
/// The most denials in one reply, which fit into a frame whatever their paths are.
pub const DENIALS_MAX: usize = 128;

/// The most files in one impact preview.
pub const PREVIEW_FILES_MAX: usize = 1000;
/// The most bytes that the paths of an impact preview take together.
pub const PREVIEW_PATHS_BYTES_MAX: usize = 192 * 1024;

/// What the agent asks of the gate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// The gate's state. Answered by [`Reply::Status`]. Any local user may ask.
    Status,
    /// What the gate would say if this file were executed while restricted. Answered by [`Reply::Explanation`]. Only
    /// root and the agent may ask this, as all that follows: the gate reads files that not every user may read.
    Explain {
        /// Absolute path.
        path: String,
    },
    /// What a restriction by this policy would refuse now. Answered by [`Reply::PreviewUnderway`] until it is found out,
    /// then by [`Reply::Preview`]: whoever wants it asks again and again.
    Preview {
        /// A policy that the gate holds: its digest, 64 hexadecimal digits, or its name, which means its newest
        /// revision here. Without it, the policy in force, or the one that was stored last.
        policy: Option<String>,
        /// A preview that is not older than this, in seconds, is good enough.
        age_seconds_max: u64,
    },
    /// Binds the gate to a machine and to the control plane's keys. Only root may ask, and only while released, or when
    /// the enrollment was lost. Answered by [`Reply::Done`].
    Enroll {
        /// The machine id, 40 hexadecimal digits.
        machine: String,
        /// This enrollment's incarnation.
        incarnation: u64,
        /// Ed25519 public keys, 64 hexadecimal digits each, whose orders and policies count.
        order_keys: Vec<String>,
    },
    /// Keeps a signed policy ahead of time. Answered by [`Reply::Done`].
    StorePolicy {
        /// The signed envelope's JSON text.
        envelope: String,
    },
    /// Starts the transfer of a new package baseline. Refused while restricted. Answered by [`Reply::Done`].
    BaselineBegin {
        /// Its length in bytes.
        bytes: u64,
        /// SHA-256 of its bytes.
        sha256: String,
    },
    /// The next piece of the baseline, at most [`CHUNK_BYTES_MAX`] bytes, base64. Answered by [`Reply::Done`].
    BaselineChunk {
        /// The piece.
        data: String,
    },
    /// Ends the transfer: the gate checks the baseline and puts it in place. Answered by [`Reply::Done`].
    BaselineEnd,
    /// Obeys a signed order. Answered by [`Reply::Accepted`] once the order is durable, then [`Reply::Receipt`];
    /// or by [`Reply::Receipt`] alone when the order is refused; or by [`Reply::Refused`] when it cannot be told
    /// whose order it is.
    Apply {
        /// The signed envelope's JSON text.
        envelope: String,
    },
    /// The receipt of the last order, for when the answer got lost. Answered by [`Reply::Receipt`], or
    /// [`Reply::Refused`] when there is none.
    LastReceipt,
    /// Keeps a signed statement of break-glass codes ahead of time. Answered by [`Reply::Done`].
    StoreBreakGlass {
        /// The signed envelope's JSON text.
        envelope: String,
    },
    /// Lifts the restriction by a break-glass code. Only root may ask. Answered by [`Reply::Lifted`].
    BreakGlass {
        /// The code, as it was typed.
        code: String,
    },
    /// The denials since the last such request, at most [`DENIALS_MAX`]. Answered by [`Reply::Denials`].
    Denials,
}

/// What the gate answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum Reply {
    /// Answers [`Request::Status`].
    Status(Box<Status>),
    /// Answers [`Request::Explain`].
    Explanation(Explanation),
    /// Answers [`Request::Preview`].
    Preview(Box<ImpactPreview>),
    /// Answers [`Request::Preview`] as long as it, or another one, is being found out.
    PreviewUnderway {
        /// Files looked at.
        files_done: u64,
        /// Files to look at; 0 before that is known.
        files_total: u64,
    },
    /// The request was carried out.
    Done,
    /// The order is durable on this machine.
    Accepted {
        /// Its generation.
        generation: u64,
    },
    /// The gate's signed answer to an order.
    Receipt {
        /// The signed envelope's JSON text.
        envelope: String,
    },
    /// Answers [`Request::BreakGlass`]: the restriction is lifted, and stays lifted until a new order.
    Lifted {
        /// What proves it, or why it is not proved, in one sentence.
        proof: String,
    },
    /// Answers [`Request::Denials`].
    Denials {
        /// Oldest first.
        denials: Vec<Denial>,
        /// How many were lost since the gate started, because nobody fetched them in time.
        dropped: u64,
    },
    /// The request was not carried out.
    Refused {
        /// Why, in one sentence.
        reason: String,
    },
}

/// The gate's state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Status {
    /// Version of the gate.
    pub version: String,
    /// The gate's public key, 64 hexadecimal digits: what receipts are verified with.
    pub public_key: String,
    /// The machine id; none before enrollment.
    pub machine: Option<String>,
    /// The incarnation of the enrollment; 0 before.
    pub incarnation: u64,
    /// The last accepted store epoch.
    pub store_epoch: u64,
    /// The last accepted generation.
    pub generation: u64,
    /// Whether the restriction is in force.
    pub restricted: bool,
    /// When the restriction in force ends by itself, in ticks of 100 ns since 1970, as its order says; none when it
    /// lasts until another order. A gate from before there were ends leaves it out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ends_at: Option<i64>,
    /// What of the gate's state is damaged or gone, while that keeps the machine restricted or makes the restriction
    /// stricter than was ordered.
    pub failed_closed: Option<String>,
    /// The tier that enforces or would: `fanotify`; none when the kernel has no usable one.
    pub tier: Option<String>,
    /// Why there is no tier, or what the tier in use does not see.
    pub tier_note: String,
    /// Digests of the policies held, 64 hexadecimal digits each.
    pub policies: Vec<String>,
    /// The policy in force when restricted.
    pub policy: Option<String>,
    /// SHA-256 of the package baseline held.
    pub baseline: Option<String>,
    /// How many files the baseline lists.
    pub baseline_files: u64,
    /// Mounts or filesystems that are marked.
    pub marks: u64,
    /// Verdicts kept for inode versions that were judged.
    pub labels: u64,
    /// What it holds of break-glass; none before enrollment, and of a gate from before there was any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub break_glass: Option<BreakGlassStatus>,
    /// Executions that were asked about since the restriction began.
    pub asked: u64,
    /// Of these, refused.
    pub denied: u64,
    /// Denials whose report was lost since the gate started.
    #[serde(default)]
    pub denials_dropped: u64,
}

/// What the gate holds of break-glass.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BreakGlassStatus {
    /// The store epoch of the codes held.
    pub store_epoch: u64,
    /// The enrollment that they are of.
    pub incarnation: u64,
    /// The serial of the first code of the statement held; 0 when none is held.
    pub first: u64,
    /// How many codes of it would be taken.
    pub codes_left: u64,
    /// When the restriction was lifted by a code, in ticks of 100 ns since 1970, while that lasts.
    pub lifted_at: Option<i64>,
    /// The signed log of the codes that were used; none before the first.
    pub log: Option<String>,
}

/// What the gate would say about a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Explanation {
    /// Whether it may run while restricted.
    pub allowed: bool,
    /// Stable reason code, see `domain::decision::DecisionCause::code`.
    pub cause: String,
    /// The rule that decided, when one did.
    pub rule: Option<String>,
    /// SHA-256 of its content, when it could be read.
    pub sha256: Option<String>,
    /// One sentence for people.
    pub message: String,
}

/// "Restricted now, these would be refused": the policy asked about what runs, and about what ran lately.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImpactPreview {
    /// Digest of the policy; none for the set that applies when the gate holds no policy.
    pub policy: Option<String>,
    /// When it was found out, in ticks of 100 ns since 1970.
    pub at: i64,
    /// Running processes that were looked at.
    pub processes: u64,
    /// Files that were judged: programs and executable mappings.
    pub files: u64,
    /// How many days of past executions it covers; none when the gate keeps no history, so that it is about what runs
    /// and nothing else.
    pub history_days: Option<u32>,
    /// Whether there was more to look at than the gate looks at.
    pub is_cut: bool,
    /// How many files would be refused, listed or not.
    pub refused_files: u64,
    /// The first [`PREVIEW_FILES_MAX`] of them at most: what runs first, then what ran last.
    pub refused: Vec<RefusedFile>,
}

/// A file that would be refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RefusedFile {
    /// Its path, escaped like that of a denial.
    pub path: String,
    /// SHA-256 of its content, when known.
    pub sha256: Option<String>,
    /// Stable reason code.
    pub cause: String,
    /// The rule that decides, when one does.
    pub rule: Option<String>,
    /// Whether it is only mapped by programs, as a library is, and not executed itself.
    pub mapped_only: bool,
    /// When it was seen last, in ticks of 100 ns since 1970: now when it runs, else some time of the day that it ran.
    pub last_seen: i64,
    /// How often it was executed in the days that the preview covers; 0 when that is not known.
    pub executions: u64,
    /// How many processes run it.
    pub processes: u64,
    /// Some of them, at most 16.
    pub pids: Vec<i32>,
}

/// One refused execution, or several alike within a second. What a gate from before it was told leaves out has its
/// default.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Denial {
    /// When, in ticks of 100 ns since 1970.
    pub at: i64,
    /// Which of the kernel's questions it was, see `domain::execution_event::Hook::name`.
    pub hook: String,
    /// The file's path; bytes that are not UTF-8 and control characters are escaped.
    pub path: String,
    /// SHA-256 of its content, when known.
    pub sha256: Option<String>,
    /// Stable reason code.
    pub cause: String,
    /// The rule or the guard that decided, when one did.
    pub rule: Option<String>,
    /// The process that tried.
    pub pid: i32,
    /// Its parent.
    pub ppid: i32,
    /// Its user.
    pub uid: Option<u32>,
    /// The program that it runs, escaped like `path`.
    pub parent_program: String,
    /// Its control group, escaped like `path`, when known.
    pub cgroup: Option<String>,
    /// The id of the container that it runs in, when it does.
    pub container: Option<String>,
    /// The interpreter, escaped like `path`, when the execution was about a script.
    pub interpreter: Option<String>,
    /// The script, escaped like `path`.
    pub script: Option<String>,
    /// Name of the policy that decided.
    pub policy: Option<String>,
    /// Its revision.
    pub policy_revision: Option<u64>,
    /// Whether it was only noted, and ran.
    pub audited: bool,
    /// How many alike this stands for; at least 1.
    pub count: u64,
}

/// Writes one frame.
///
/// # Errors
/// From the writer; `InvalidData` when the frame is longer than [`FRAME_BYTES_MAX`].
pub fn write_frame(writer: &mut impl Write, frame: &impl Serialize) -> io::Result<()> {
    writer.write_all(&encode(frame)?)?;
    writer.flush()
}

/// One frame as bytes.
///
/// # Errors
/// `InvalidData` when the frame is longer than [`FRAME_BYTES_MAX`].
pub fn encode(frame: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; 4];
    serde_json::to_writer(&mut bytes, frame)?;
    let length = bytes.len() - 4;
    if length > FRAME_BYTES_MAX {
        return Err(invalid(format!("a frame of {length} bytes, at most {FRAME_BYTES_MAX} are possible")));
    }
    let prefix = u32::try_from(length).map_err(|error| invalid(error.to_string()))?.to_be_bytes();
    if let Some(head) = bytes.get_mut(..4) {
        head.copy_from_slice(&prefix);
    }
    Ok(bytes)
}

/// Reads one frame; none at the end of the stream. Memory grows with what arrives, not with what the length claims.
///
/// # Errors
/// From the reader; `InvalidData` when the frame is too long or is not what is expected.
pub fn read_frame<T: DeserializeOwned>(reader: &mut impl Read) -> io::Result<Option<T>> {
    read_frame_within(reader, FRAME_BYTES_MAX)
}

/// [`read_frame`] of at most `bytes_max` bytes, from a peer that has little to say.
///
/// # Errors
/// Like [`read_frame`].
pub fn read_frame_within<T: DeserializeOwned>(
    reader: &mut impl Read,
    bytes_max: usize,
) -> io::Result<Option<T>> {
    let mut prefix = [0_u8; 4];
    match reader.read_exact(&mut prefix) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    }
    let length = frame_length(prefix)?;
    if length > bytes_max {
        return Err(invalid(format!("a frame of {length} bytes, at most {bytes_max} are possible here")));
    }
    let mut bytes = Vec::new();
    reader.take(length as u64).read_to_end(&mut bytes)?;
    if bytes.len() < length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    decode(&bytes).map(Some)
}

/// The length of the frame behind this prefix.
///
/// # Errors
/// `InvalidData` when it is longer than [`FRAME_BYTES_MAX`].
pub fn frame_length(prefix: [u8; 4]) -> io::Result<usize> {
    let length = u32::from_be_bytes(prefix) as usize;
    if length > FRAME_BYTES_MAX {
        return Err(invalid(format!("a frame of {length} bytes, at most {FRAME_BYTES_MAX} are possible")));
    }
    Ok(length)
}

/// The frame in `bytes`, which hold it without its length.
///
/// # Errors
/// `InvalidData` when it is not what is expected.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> io::Result<T> {
    serde_json::from_slice(bytes).map_err(|error| invalid(error.to_string()))
}

fn invalid(message: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_round_trip() {
        let mut wire = Vec::new();
        let frames = [Request::Status, Request::Explain { path: "/bin/ls".to_owned() }];
        for frame in &frames {
            write_frame(&mut wire, frame).unwrap();
        }
        let mut reader = wire.as_slice();
        for frame in frames {
            assert_eq!(read_frame(&mut reader).unwrap(), Some(frame));
        }
        assert_eq!(read_frame::<Request>(&mut reader).unwrap(), None);
    }

    #[test]
    fn bad_frames_are_errors() {
        let read = |bytes: &[u8]| read_frame::<Request>(&mut &*bytes).unwrap_err().kind();
        assert_eq!(read(&[0xff; 8]), io::ErrorKind::InvalidData);
        assert_eq!(read(&[0, 0, 0, 9, b'{']), io::ErrorKind::UnexpectedEof);
        assert_eq!(read(&[0, 0, 0, 2, b'{', b'}']), io::ErrorKind::InvalidData);
        let within = read_frame_within::<Request>(&mut &[0, 0, 1, 1, b'{'][..], 256);
        assert_eq!(within.unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
