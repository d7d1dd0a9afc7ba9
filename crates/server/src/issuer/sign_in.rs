//! The check of a person's password, in front of which guesses are counted.
//!
//! An attempt counts before it is checked, and is taken back when it succeeds: attempts at the same time do not get past
//! the count. Guesses from one network do not keep out whoever signs in from another. Accounts that do not exist are counted like those that do. Names are not logged: people type passwords
//! into the wrong field.

use domain::time::Timestamp;
use domain::user::User;

use super::refused::Refused;
use crate::attempts::{self, TooMany};
use crate::state::AppState;
use crate::tls::Peer;

/// The longest name that is counted on its own, in characters.
const NAME_CHARS_MAX: usize = 128;

/// Why a person is not signed in.
#[derive(Debug)]
pub(super) enum SignInFault {
    /// Too many wrong passwords.
    TooMany(TooMany),
    /// Unknown, wrong, locked or disabled: nobody is told which.
    Wrong,
    /// The store cannot be asked.
    Unavailable,
}

impl SignInFault {
    /// What a person reads.
    pub(super) fn text(&self) -> &'static str {
        match self {
            Self::TooMany(_) => "There were too many attempts. Wait a minute, then try again.",
            Self::Wrong => {
                "The name or the password is wrong, or the account is locked. After 10 wrong passwords an \
                 account is locked for 15 minutes."
            }
            Self::Unavailable => "The server cannot check passwords at the moment. Try again.",
        }
    }
}

impl From<SignInFault> for Refused {
    fn from(fault: SignInFault) -> Self {
        use axum::http::StatusCode;
        match fault {
            SignInFault::TooMany(too_many) => Self::too_many(too_many),
            SignInFault::Wrong => {
                let text = "Error validating credentials due to invalid username or password.";
                Self::new(StatusCode::BAD_REQUEST, "invalid_grant", 50_126, text)
            }
            SignInFault::Unavailable => Self::unavailable(),
        }
    }
}

/// The person with this name and password.
pub(super) async fn sign_in(
    state: &AppState,
    peer: &Peer,
    name: &str,
    password: &str,
    now: Timestamp,
) -> Result<User, SignInFault> {
    let issuer = &state.issuer;
    let network = attempts::network(peer.address.ip());
    let account: String = name.trim().to_lowercase().chars().take(NAME_CHARS_MAX).collect();
    issuer.passwords.begin(network, now).map_err(SignInFault::TooMany)?;
    let account = (account, network);
    if let Err(too_many) = issuer.passwords_of_account.begin(account.clone(), now) {
        // Refused without being checked: that takes nothing from the network's other accounts.
        issuer.passwords.take_back(&network, now);
        return Err(SignInFault::TooMany(too_many));
    }
    let take_back = || {
        issuer.passwords.take_back(&network, now);
        issuer.passwords_of_account.take_back(&account, now);
    };
    match state.control.user_authenticate(name, password, &network.to_string()).await {
        Ok(user) => {
            take_back();
            Ok(user)
        }
        Err(control_plane::Error::Unauthenticated(_)) => {
            tracing::warn!(address = %peer.address, "a person's sign-in was refused");
            Err(SignInFault::Wrong)
        }
        Err(control_plane::Error::Busy(why)) => {
            take_back();
            tracing::warn!(address = %peer.address, why, "a person's sign-in was put off");
            Err(SignInFault::Unavailable)
        }
        Err(error) => {
            take_back();
            tracing::error!(error = &error as &dyn std::error::Error, "a password could not be checked");
            Err(SignInFault::Unavailable)
        }
    }
}
