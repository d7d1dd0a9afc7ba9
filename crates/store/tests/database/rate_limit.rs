//! The call times of rate limits.

use domain::rate_limit::{CallLog, RateLimit};
use store::rate_limit::{Key, rate_limit_clear, rate_limit_list, rate_limit_spend};

use crate::fixture::{Database, second};

const LIMIT: RateLimit = RateLimit::per_minute_and_hour(2, 4);

#[tokio::test]
async fn the_ring_keeps_the_last_calls_of_each_key() {
    let database = Database::new();
    let key: Key = ("machine_restrict".to_owned(), "an app".to_owned());
    let other: Key = ("machine_unrestrict".to_owned(), "an app".to_owned());
    for (key, calls) in [(key.clone(), 6), (other.clone(), 1)] {
        for call in 0..calls {
            let key = key.clone();
            let at = second(10 * i64::try_from(call).unwrap());
            database.write(move |tx| rate_limit_spend(tx, &key, &LIMIT, call, at)).await;
        }
    }
    let database = database.reopened();
    let mut calls = database.read(|tx| rate_limit_list(tx, second(0))).await;
    calls.sort();
    let own = (2..6).map(|call| (key.clone(), call, second(10 * i64::try_from(call).unwrap())));
    assert_eq!(calls, own.chain([(other, 0, second(0))]).collect::<Vec<_>>());
    let recent = database.read(|tx| rate_limit_list(tx, second(40))).await;
    assert_eq!(recent.len(), 2);

    // What was restored refuses what the log that was lost would have refused.
    let mut log =
        CallLog::restore(&LIMIT, calls.iter().filter(|call| call.0 == key).map(|call| (call.1, call.2)));
    log.admit(&LIMIT, second(60)).unwrap_err();

    database.write(rate_limit_clear).await;
    assert_eq!(database.read(|tx| rate_limit_list(tx, second(0))).await, []);
}
