//! Issuers of other people, whose tokens count because the settings say so.
//!
//! Owns what a token of such an issuer must be besides what `token` checks of all, and the cache of its keys: who fetches
//! them, when, and what counts while they cannot be had. One task an issuer does all fetching, so that no caller can make
//! the server fetch more than its pace allows. Deliberately trusts nothing that a token says of its own key.

mod fetch;
mod keys;

use std::sync::Arc;
use std::time::Duration;

use domain::time::Timestamp;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::config::{Config, IssuerSettings};
use crate::token::{self, ClaimNames, Speaker, SpeakerKind, Subject, Token, TokenFault, TokenText};
use fetch::{FetchError, Fetcher};
use keys::KeySet;

pub(crate) use fetch::IssuerError;

/// How often the keys of one issuer are fetched.
#[derive(Debug, Clone, Copy)]
struct Pace {
    /// The time between two fetches when all is well.
    refresh: Duration,
    /// The least time between two fetches because of keys that are unknown. Anybody can name such a key.
    unknown_key: Duration,
    /// The first wait after a failure; it doubles with each.
    retry_first: Duration,
    /// The longest wait after a failure.
    retry_max: Duration,
    /// How long keys count while no fetch succeeds: an issuer that is down for a night locks nobody out.
    keys_age_max: Duration,
}

impl Pace {
    fn of(settings: &IssuerSettings) -> Self {
        Self {
            refresh: Duration::from_secs(settings.jwks_refresh_seconds.into()),
            unknown_key: Duration::from_secs(30),
            retry_first: Duration::from_secs(1),
            retry_max: Duration::from_secs(60),
            keys_age_max: Duration::from_secs(24 * 60 * 60),
        }
    }
}

/// The longest that a token waits for a fetch: a little more than a fetch takes.
const WAIT_MAX: Duration = Duration::from_secs(15);

/// One issuer.
pub(crate) struct ExternalIssuer {
    settings: IssuerSettings,
    /// Accepted as they are and with a slash at the end.
    audiences: Vec<String>,
    pace: Pace,
    fetcher: Fetcher,
    known: watch::Sender<Known>,
    /// Wakes the task that fetches.
    wanted: Notify,
}

/// What is known of an issuer's keys.
#[derive(Clone)]
struct Known {
    /// The keys, and when they were fetched.
    keys: Option<(Arc<KeySet>, Instant)>,
    /// A fetch goes on, or is about to.
    fetching: bool,
    /// The last fetch failed; there will be another then.
    retry: Option<Instant>,
    /// From when an unknown key may lead to a fetch.
    unknown_key_from: Instant,
}

impl ExternalIssuer {
    /// All issuers of the settings. Fetches nothing: see [`ExternalIssuer::run`].
    ///
    /// # Errors
    /// [`IssuerError`].
    pub(crate) fn all(config: &Config) -> Result<Vec<Arc<Self>>, IssuerError> {
        let own = std::iter::once(&config.public_url).chain(&config.audiences);
        let own: Vec<_> = own.cloned().collect();
        let issuers = config.issuers.iter().map(|settings| {
            let audiences = settings.audiences.as_ref().unwrap_or(&own);
            Self::new(settings.clone(), audiences, Pace::of(settings)).map(Arc::new)
        });
        issuers.collect()
    }

    fn new(settings: IssuerSettings, audiences: &[String], pace: Pace) -> Result<Self, IssuerError> {
        let audiences = audiences.iter().map(|audience| bare(audience).to_owned()).collect();
        let fetcher = Fetcher::new(&settings)?;
        // The first fetch begins with the task.
        let known = Known { keys: None, fetching: true, retry: None, unknown_key_from: Instant::now() };
        Ok(Self {
            settings,
            audiences,
            pace,
            fetcher,
            known: watch::Sender::new(known),
            wanted: Notify::new(),
        })
    }

    /// The issuer's name in tokens.
    pub(crate) fn url(&self) -> &str {
        &self.settings.issuer
    }

    /// Checks a token that names this issuer, at the time `now`.
    ///
    /// # Errors
    /// [`TokenFault`].
    pub(crate) async fn validate(&self, text: &TokenText<'_>, now: Timestamp) -> Result<Token, TokenFault> {
        let invalid = |why: &str| Err(TokenFault::invalid(why));
        let mut pinned = self.settings.algorithms.iter();
        let Some(algorithm) = pinned.find(|algorithm| algorithm.name() == text.algorithm).copied() else {
            let names: Vec<_> = self.settings.algorithms.iter().map(|algorithm| algorithm.name()).collect();
            return Err(TokenFault::Invalid(format!("the token is not signed with {}", names.join(" or "))));
        };
        let Some(key_id) = text.key_id.as_deref() else {
            return invalid("the token names no key");
        };
        let keys = self.keys_with(key_id).await?;
        let Some((key, algorithm)) = keys.find(key_id, algorithm) else {
            return invalid("the token's key is not for its algorithm");
        };
        token::verify(text, key, algorithm)?;
        let claims = &text.claims;
        if claims.get("iss").and_then(|issuer| issuer.as_str()) != Some(self.url()) {
            return invalid("the token is from another issuer");
        }
        token::check_times(claims, now)?;
        let names = ClaimNames {
            roles: &self.settings.roles_claim,
            groups: &self.settings.groups_claim,
            name: self.settings.name_claim.as_deref(),
        };
        let Speaker { client, kind } = token::read_speaker(claims, names)?;
        token::check_audience(claims, &self.audiences, |audience| {
            self.audiences.iter().any(|accepted| accepted == bare(audience))
        })?;
        let qualified = |id: &str| format!("{}|{id}", self.url());
        let subject = match kind {
            SpeakerKind::App { permissions } if self.settings.applications => Subject::App { permissions },
            SpeakerKind::App { .. } => {
                return invalid("applications of its issuer cannot act for themselves here");
            }
            SpeakerKind::User { name, id, scopes, groups, signed_in_at } if self.settings.users => {
                Subject::User {
                    name: name.to_owned(),
                    id: qualified(id),
                    scopes,
                    groups: groups
                        .iter()
                        .map(|group| format!("{}{group}", self.settings.groups_prefix))
                        .collect(),
                    signed_in_at,
                    local: false,
                }
            }
            SpeakerKind::User { .. } => return invalid("people of its issuer cannot act here"),
        };
        Ok(Token { app: qualified(client), subject })
    }

    /// The keys, once they have the one with this id: fetched for it if the pace allows.
    async fn keys_with(&self, id: &str) -> Result<Arc<KeySet>, TokenFault> {
        let mut news = self.known.subscribe();
        let known = news.borrow_and_update().clone();
        let now = Instant::now();
        if let Some(keys) = known.keys_at(now, &self.pace).filter(|keys| keys.contains(id)) {
            return Ok(keys);
        }
        // While the issuer is known to fail, nobody waits for it.
        let mut waits = known.fetching && known.retry.is_none();
        if !waits && known.retry.is_none() {
            // In one step, so that of all that come at once a single one asks, and the others wait with it.
            let may_ask = |known: &mut Known| {
                waits = known.fetching || now >= known.unknown_key_from;
                let asks = waits && !known.fetching;
                if asks {
                    known.fetching = true;
                    known.unknown_key_from = now + self.pace.unknown_key;
                }
                asks
            };
            if self.known.send_if_modified(may_ask) {
                self.wanted.notify_one();
            }
        }
        if waits {
            let fetched = tokio::time::timeout(WAIT_MAX, news.wait_for(|known| !known.fetching));
            let Ok(Ok(_)) = fetched.await else {
                return Err(TokenFault::Unavailable { retry_after: self.pace.retry_first });
            };
        }
        let (known, now) = (self.known.borrow().clone(), Instant::now());
        match known.keys_at(now, &self.pace) {
            Some(keys) if keys.contains(id) => Ok(keys),
            // The key may be a new one that could not be fetched.
            Some(_) | None if known.retry.is_some() => {
                let until = known.retry.map(|retry| retry.saturating_duration_since(now)).unwrap_or_default();
                Err(TokenFault::Unavailable { retry_after: until.max(Duration::from_secs(1)) })
            }
            Some(_) => Err(TokenFault::invalid("the token's key is unknown")),
            None => Err(TokenFault::Unavailable { retry_after: self.pace.retry_first }),
        }
    }

    /// Fetches the keys, again and again, until the server stops.
    pub(crate) async fn run(self: Arc<Self>, mut stop: watch::Receiver<bool>) {
        let mut failures = 0_u32;
        loop {
            let fetched = tokio::select! {
                biased;
                _ = stop.wait_for(|stopped| *stopped) => return,
                fetched = self.fetcher.fetch() => fetched,
            };
            self.log(&fetched, failures);
            let now = Instant::now();
            failures = if fetched.is_ok() { 0 } else { failures.saturating_add(1) };
            let wait = if failures == 0 { self.pace.refresh } else { self.pace.retry_after(failures) };
            self.known.send_modify(|known| {
                known.fetching = false;
                known.retry = fetched.is_err().then(|| now + wait);
                if let Ok(keys) = fetched {
                    known.keys = Some((Arc::new(keys), now));
                }
            });
            tokio::select! {
                biased;
                _ = stop.wait_for(|stopped| *stopped) => return,
                () = self.wanted.notified() => {}
                () = tokio::time::sleep_until(now + wait) => {}
            }
            self.known.send_modify(|known| known.fetching = true);
        }
    }

    /// Once for each change, not for each attempt.
    fn log(&self, fetched: &Result<KeySet, FetchError>, failures: u32) {
        let issuer = self.url();
        match fetched {
            Ok(_) if failures > 0 || self.known.borrow().keys.is_none() => {
                tracing::info!(issuer, "the keys of the issuer are known");
            }
            Err(error) if failures == 0 => {
                let error = error as &dyn std::error::Error;
                tracing::warn!(issuer, error, "the keys of the issuer cannot be fetched; trying again");
            }
            Ok(_) | Err(_) => {}
        }
    }
}

impl Known {
    /// The keys that count.
    fn keys_at(&self, now: Instant, pace: &Pace) -> Option<Arc<KeySet>> {
        let (keys, fetched) = self.keys.as_ref()?;
        (now.saturating_duration_since(*fetched) < pace.keys_age_max).then(|| Arc::clone(keys))
    }
}

impl Pace {
    /// The wait after so many failures in a row, of which there was one at least.
    fn retry_after(&self, failures: u32) -> Duration {
        let doubled = 1_u32.checked_shl(failures.saturating_sub(1)).unwrap_or(u32::MAX);
        self.retry_first.saturating_mul(doubled).min(self.retry_max)
    }
}

/// Without one slash at the end.
fn bare(audience: &str) -> &str {
    audience.strip_suffix('/').unwrap_or(audience)
}

#[cfg(test)]
mod tests;
