//! The limits of every field, and the only way from bytes to a frame.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Why a frame is not accepted. The peer is at fault in each case.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Longer than the direction allows.
    #[error("a frame of {bytes} bytes, at most {limit} are possible")]
    TooLarge {
        /// Its length.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// Not JSON of a known frame.
    #[error("not a frame of this protocol: {0}")]
    Malformed(String),
    /// A field is longer than its limit.
    #[error("{field} is longer than its limit of {limit}")]
    Field {
        /// The field.
        field: &'static str,
        /// Its limit, in bytes or items.
        limit: usize,
    },
}

/// A frame whose fields have limits.
pub trait Limited {
    /// Checks every field.
    ///
    /// # Errors
    /// [`FrameError::Field`] for the first that is over its limit.
    fn check(&self) -> Result<(), FrameError>;
}

/// Reads a frame of at most `limit` bytes and checks its fields.
///
/// # Errors
/// [`FrameError`], which says what is wrong.
pub fn decode<T: DeserializeOwned + Limited>(bytes: &[u8], limit: usize) -> Result<T, FrameError> {
    if bytes.len() > limit {
        return Err(FrameError::TooLarge { bytes: bytes.len(), limit });
    }
    let frame: T = serde_json::from_slice(bytes).map_err(|error| FrameError::Malformed(error.to_string()))?;
    frame.check()?;
    Ok(frame)
}

/// A frame as the text of a WebSocket message.
pub fn encode(frame: &impl Serialize) -> String {
    // Maps with string keys and plain values only: serialization has no way to fail.
    serde_json::to_string(frame).unwrap_or_default()
}

pub(crate) const NAME_BYTES_MAX: usize = 256;
pub(crate) const PATH_BYTES_MAX: usize = 16 * 1024;
pub(crate) const REASON_BYTES_MAX: usize = 1024;
pub(crate) const HEX_BYTES_MAX: usize = 128;

pub(crate) fn at_most(field: &'static str, length: usize, limit: usize) -> Result<(), FrameError> {
    if length <= limit { Ok(()) } else { Err(FrameError::Field { field, limit }) }
}
