//! Rate limits: counted in memory, written behind, so that they hold over a restart.
//!
//! The record of a call is queued for the writer before the call's own change, so a change that is on the disk has
//! its call counted there too.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use domain::rate_limit::{CallLog, RateLimit};
use domain::time::Timestamp;
use store::rate_limit::{Key, rate_limit_clear, rate_limit_list, rate_limit_spend};
use store::{Store, StoreError, Tx};

use crate::{Caller, Error, Result, now};

/// Counts calls per operation and app.
pub(crate) struct RateLimiter(Mutex<Calls>);

struct Calls {
    limit: RateLimit,
    logs: HashMap<Key, CallLog>,
}

impl RateLimiter {
    /// Takes up the calls that still count.
    pub(crate) async fn restore(store: &Store, limit: RateLimit, now: Timestamp) -> Result<Self> {
        let since = now.minus(limit.hour.window.max(limit.minute.window));
        let calls = store.read(move |tx| Ok::<_, Error>(rate_limit_list(tx, since)?)).await?;
        let rows = by_key(calls);
        let kept = rows.clone();
        store.write(move |tx| Ok::<_, Error>(rewrite(tx, &limit, kept)?)).await?;
        let logs = rows.into_iter().map(|(key, calls)| (key, CallLog::restore(&limit, calls))).collect();
        Ok(Self(Mutex::new(Calls { limit, logs })))
    }

    /// Admits one call of `operation`, or says how long to wait. A refused call spends nothing.
    pub(crate) fn admit(&self, store: &Store, operation: &str, caller: &Caller) -> Result<()> {
        let now = now();
        let key = (operation.to_owned(), caller.app().to_owned());
        let mut calls = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let limit = calls.limit;
        let log = calls.logs.entry(key.clone()).or_default();
        let call = log.admit(&limit, now).map_err(Error::RateLimited)?;
        // Queued under the lock: a call is written by the limit that admitted it.
        store.write_behind(move |tx| rate_limit_spend(tx, &key, &limit, call, now));
        Ok(())
    }

    /// Puts another limit in force. Calls that were made count against it.
    pub(crate) fn limit_set(&self, store: &Store, limit: RateLimit) {
        let mut calls = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if calls.limit == limit {
            return;
        }
        calls.limit = limit;
        // Written anew, because another limit uses other slots; queued before the calls that it admits.
        store.write_behind(move |tx| {
            let rows = by_key(rate_limit_list(tx, Timestamp::default())?);
            rewrite(tx, &limit, rows)
        });
    }
}

type Rows = HashMap<Key, Vec<(u64, Timestamp)>>;

fn by_key(calls: Vec<(Key, u64, Timestamp)>) -> Rows {
    let mut rows = Rows::new();
    for (key, call, at) in calls {
        rows.entry(key).or_default().push((call, at));
    }
    rows
}

fn rewrite(tx: &Tx<'_>, limit: &RateLimit, rows: Rows) -> std::result::Result<(), StoreError> {
    rate_limit_clear(tx)?;
    for (key, mut calls) in rows {
        calls.sort_unstable();
        for (call, at) in calls {
            rate_limit_spend(tx, &key, limit, call, at)?;
        }
    }
    Ok(())
}
