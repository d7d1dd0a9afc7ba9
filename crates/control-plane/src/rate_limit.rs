//! Rate limits: counted in memory, written behind, so that they hold over a restart.
//!
//! The record of a call is queued for the writer before the call's own change, so a change that is on the disk has
//! its call counted there too.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use domain::rate_limit::{CallLog, RateLimit};
use domain::time::Timestamp;
use store::Store;
use store::rate_limit::{Key, rate_limit_clear, rate_limit_list, rate_limit_spend};
use uuid::Uuid;

use crate::{Error, Result};

/// Counts calls per operation and app. The number of keys is bounded by the apps that exist.
pub(crate) struct RateLimiter {
    limit: RateLimit,
    logs: Mutex<HashMap<Key, CallLog>>,
}

impl RateLimiter {
    /// Takes up the calls that still count.
    pub(crate) async fn restore(store: &Store, limit: RateLimit, now: Timestamp) -> Result<Self> {
        let since = now.minus(limit.hour.window.max(limit.minute.window));
        let calls = store.read(move |tx| Ok::<_, Error>(rate_limit_list(tx, since)?)).await?;
        let mut rows: HashMap<Key, Vec<(u64, Timestamp)>> = HashMap::new();
        for (key, call, at) in calls {
            rows.entry(key).or_default().push((call, at));
        }
        let kept = rows.clone();
        store
            .write(move |tx| {
                // Written anew, because a limit that was changed uses other slots.
                rate_limit_clear(tx)?;
                for (key, mut calls) in kept {
                    calls.sort_unstable();
                    for (call, at) in calls {
                        rate_limit_spend(tx, &key, &limit, call, at)?;
                    }
                }
                Ok::<_, Error>(())
            })
            .await?;
        let logs = rows.into_iter().map(|(key, calls)| (key, CallLog::restore(&limit, calls))).collect();
        Ok(Self { limit, logs: Mutex::new(logs) })
    }

    /// Admits one call of `operation` by `app`, or says how long to wait. A refused call spends nothing.
    pub(crate) fn admit(&self, store: &Store, operation: &str, app: Uuid, now: Timestamp) -> Result<()> {
        let key = (operation.to_owned(), app);
        let limit = self.limit;
        let call = {
            let mut logs = self.logs.lock().unwrap_or_else(PoisonError::into_inner);
            logs.entry(key.clone()).or_default().admit(&limit, now).map_err(Error::RateLimited)?
        };
        store.write_behind(move |tx| rate_limit_spend(tx, &key, &limit, call, now));
        Ok(())
    }
}
