//! Applications: the clients of the API.

use uuid::Uuid;

use crate::permission::Permission;
use crate::time::Timestamp;

/// The id of Cordon's own command line, by which people sign in. It holds no secret and needs no entry.
pub const CLI_APP_ID: Uuid = Uuid::from_u128(0xc07d_0000_0000_4000_8000_0000_0000_0001);

/// An application.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct App {
    /// Its id, the `appid` of its tokens.
    pub id: Uuid,
    /// What people call it.
    pub name: String,
    /// What it may do, by itself and at most for a person.
    pub permissions: Vec<Permission>,
    /// Whether it holds no secret, so that it can act for people only.
    pub is_public: bool,
    /// Where people may be sent back to after they signed in, exactly.
    pub redirect_uris: Vec<String>,
    /// The machine groups that it is limited to; none when it acts on all machines.
    pub machine_groups: Option<Vec<i64>>,
    /// How many machines it may restrict or unrestrict by bulk calls in an hour; none for the setting's number.
    pub bulk_machines_max: Option<u32>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was revoked.
    pub revoked_at: Option<Timestamp>,
}
