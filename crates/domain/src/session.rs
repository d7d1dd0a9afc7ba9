//! Sessions: what follows from one sign-in of a person to one app, and how long it lasts.

use std::time::Duration;

use uuid::Uuid;

use crate::permission::Permission;
use crate::time::Timestamp;

/// How long an authorization code can be redeemed.
pub const CODE_VALIDITY: Duration = Duration::from_secs(60);
/// How long a device code can be approved and polled.
pub const DEVICE_CODE_VALIDITY: Duration = Duration::from_secs(15 * 60);
/// How long a device waits between two polls, at first. Each poll that comes too early adds as much.
pub const POLL_INTERVAL: Duration = Duration::from_secs(5);
/// How long a session lasts without being renewed.
pub const IDLE_MAX: Duration = Duration::from_secs(12 * 60 * 60);
/// How long a session lasts at most: then the person signs in again.
pub const SESSION_MAX: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// What an app asks for in the name of a person.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// Which of the API's names the tokens are to be for.
    pub audience: String,
    /// The permissions, sorted; those that the app had then, when [`Asked::everything`].
    pub permissions: Vec<Permission>,
    /// Everything that the app may have, then and later: `/.default`.
    pub everything: bool,
    /// An id token too.
    pub openid: bool,
    /// A refresh token too.
    pub offline: bool,
}

/// One sign-in of a person to an app.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    /// Its id, for the records. Not a secret.
    pub id: Uuid,
    /// The app.
    pub app: Uuid,
    /// The account.
    pub user: Uuid,
    /// The account's name.
    pub user_name: String,
    /// What the person granted.
    pub asked: Asked,
    /// When the password was given.
    pub signed_in_at: Timestamp,
    /// Until when it can be renewed, or its code redeemed.
    pub expires_at: Timestamp,
    /// When it was revoked.
    pub revoked_at: Option<Timestamp>,
}

/// A device that waits for a person.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceCode {
    /// The app that runs on it.
    pub app: Uuid,
    /// What it asks for.
    pub asked: Asked,
    /// The network address that asked, for the person to recognize.
    pub address: String,
    /// When it asked.
    pub created_at: Timestamp,
    /// Until when it can be approved.
    pub expires_at: Timestamp,
    /// How long the device is to wait between two polls.
    pub interval: Duration,
    /// When it polled last.
    pub polled_at: Option<Timestamp>,
    /// What a person decided.
    pub decision: Option<Decision>,
}

/// What a person decided of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// It may; the session that was begun for it.
    Approved(Uuid),
    /// It may not.
    Declined,
}
