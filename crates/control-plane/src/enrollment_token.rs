//! Enrollment tokens: made, listed, revoked. They are spent in [`crate::machine`].

use std::time::Duration;

use domain::enrollment_token::EnrollmentToken;
use domain::permission::Requirement;
use store::enrollment_token::{enrollment_token_create, enrollment_token_list, enrollment_token_revoke};
use uuid::Uuid;

use crate::{Caller, ControlPlane, Error, Result, audit, now, secret};

/// The most machines that one token admits.
const USES_MAX: u32 = 100_000;
/// How long a token may be valid.
const VALIDITY: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(60)..=Duration::from_secs(365 * 24 * 60 * 60);
/// The longest comment, in characters.
const COMMENT_CHARS_MAX: usize = 256;

impl ControlPlane {
    /// Makes a token. Its secret is shown this once.
    ///
    /// # Errors
    /// [`Error::Forbidden`], [`Error::InvalidInput`]; from the store.
    pub async fn enrollment_token_create(
        &self,
        caller: &Caller,
        uses_max: u32,
        expires_in: Duration,
        comment: String,
    ) -> Result<(EnrollmentToken, String)> {
        caller.require(Requirement::ADMINISTER_SECURITY)?;
        if !(1..=USES_MAX).contains(&uses_max) {
            return Err(Error::InvalidInput(format!("a token admits 1 to {USES_MAX} machines")));
        }
        if !VALIDITY.contains(&expires_in) {
            return Err(Error::InvalidInput("a token is valid for one minute to one year".to_owned()));
        }
        if comment.chars().count() > COMMENT_CHARS_MAX {
            return Err(Error::InvalidInput(format!("a comment has at most {COMMENT_CHARS_MAX} characters")));
        }
        let secret = secret::generate("cordon-enroll-")?;
        let digest = secret::digest(&secret);
        let created_at = now();
        let token = EnrollmentToken {
            id: Uuid::new_v4(),
            comment,
            uses_max,
            uses: 0,
            created_at,
            expires_at: created_at.plus(expires_in),
            revoked_at: None,
        };
        let (actor, made) = (caller.name().to_owned(), token.clone());
        self.0
            .store
            .write(move |tx| {
                enrollment_token_create(tx, &made, &digest)?;
                let detail = format!("for {} machines, {:?}", made.uses_max, made.comment);
                Ok::<_, Error>(audit::record(
                    tx,
                    created_at,
                    &actor,
                    "enrollment_token_create",
                    made.id,
                    detail,
                )?)
            })
            .await?;
        Ok((token, secret))
    }

    /// All tokens, newest first.
    ///
    /// # Errors
    /// [`Error::Forbidden`]; from the store.
    pub async fn enrollment_token_list(&self, caller: &Caller) -> Result<Vec<EnrollmentToken>> {
        caller.require(Requirement::ADMINISTER_SECURITY)?;
        self.0.store.read(|tx| Ok(enrollment_token_list(tx)?)).await
    }

    /// Revokes a token. Machines that enrolled with it stay enrolled.
    ///
    /// # Errors
    /// [`Error::Forbidden`], [`Error::NotFound`]; from the store.
    pub async fn enrollment_token_revoke(&self, caller: &Caller, id: Uuid) -> Result<()> {
        caller.require(Requirement::ADMINISTER_SECURITY)?;
        let actor = caller.name().to_owned();
        self.0
            .store
            .write(move |tx| {
                let at = now();
                if !enrollment_token_revoke(tx, id, at)? {
                    return Err(Error::NotFound { entity: "EnrollmentToken", id: id.to_string() });
                }
                Ok(audit::record(tx, at, &actor, "enrollment_token_revoke", id, "")?)
            })
            .await
    }
}
