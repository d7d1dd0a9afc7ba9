//! `cordon enrollment-token`: secrets with which machines enroll.

use std::time::Duration;

use anyhow::Result;
use api_types::enrollment_token::{EnrollmentToken, EnrollmentTokenCreate, EnrollmentTokenCreated};
use clap::Subcommand;
use uuid::Uuid;

use crate::duration;
use crate::outcome::Outcome;
use crate::output::record;
use crate::session::Session;
use crate::table::{Fit, Table};
use crate::text::seconds;

const TOKENS: [&str; 4] = ["api", "cordon", "v1", "enrollmentTokens"];

/// Make and revoke the secrets with which machines enroll
#[derive(Debug, Subcommand)]
pub(crate) enum EnrollmentTokenCommand {
    /// Make a token; its secret is shown this once
    Create {
        /// How many machines may enroll with it
        #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100_000))]
        uses: u32,
        /// How long it is valid, such as 30m, 24h or 7d
        #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = duration::parse)]
        expires_in: Duration,
        /// What it is for
        #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
        comment: String,
    },
    /// List tokens, without their secrets
    List,
    /// Revoke a token: no machine enrolls with it any more; those that did stay
    Revoke {
        /// Its id
        id: Uuid,
    },
}

/// Runs the command.
pub(crate) async fn run(command: &EnrollmentTokenCommand, session: &Session) -> Result<Outcome> {
    let (client, output) = (&session.client, &session.output);
    match command {
        EnrollmentTokenCommand::Create { uses, expires_in, comment } => {
            let create = EnrollmentTokenCreate {
                uses_max: *uses,
                expires_in_seconds: expires_in.as_secs(),
                comment: comment.clone(),
            };
            output.entity(&client.post(&TOKENS, &create).await?, created)?;
            output.hint(
                "the secret is shown this once; run the command as root on the machine that is to enroll",
            );
        }
        EnrollmentTokenCommand::List => output.list(&client.list(&TOKENS, &[]).await?, table)?,
        EnrollmentTokenCommand::Revoke { id } => {
            let id = id.to_string();
            let reply = client.delete(&[&TOKENS[..], &[&id]].concat()).await?;
            output.done(&reply, &format!("enrollment token {id} is revoked"))?;
        }
    }
    Ok(Outcome::Done)
}

fn created(created: &EnrollmentTokenCreated) -> String {
    let token = &created.token;
    record([
        ("id", Some(token.id.to_string())),
        ("uses", Some(token.uses_max.to_string())),
        ("expires", Some(token.expiry_date_time_utc.to_string())),
        ("comment", (!token.comment.is_empty()).then(|| token.comment.clone())),
        ("secret", Some(created.secret.clone())),
        ("command", Some(created.command.clone())),
    ])
}

fn table(tokens: &[EnrollmentToken]) -> Table {
    let columns = [
        ("ID", Fit::Whole),
        ("USED", Fit::Whole),
        ("EXPIRES (UTC)", Fit::Whole),
        ("REVOKED (UTC)", Fit::Optional),
        ("COMMENT", Fit::Cut),
    ];
    Table::new(&columns, tokens, |token| {
        vec![
            token.id.to_string(),
            format!("{}/{}", token.uses, token.uses_max),
            seconds(token.expiry_date_time_utc),
            token.revoked_date_time_utc.map(seconds).unwrap_or_default(),
            token.comment.clone(),
        ]
    })
}
