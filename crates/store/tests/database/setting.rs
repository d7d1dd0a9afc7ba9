//! Settings.

use std::collections::BTreeMap;

use store::setting::{setting_list, setting_set};
use store::store_epoch_fetch;

use crate::fixture::Database;

#[tokio::test]
async fn a_setting_is_set_changed_and_removed() {
    let database = Database::new();
    assert_eq!(database.read(setting_list).await, BTreeMap::new());
    for (name, value) in [("b", Some("1")), ("a", Some("x")), ("b", Some("2")), ("none", None)] {
        database.write(move |tx| setting_set(tx, name, value)).await;
    }
    let database = database.reopened();
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    assert_eq!(database.read(setting_list).await, BTreeMap::from([pair("a", "x"), pair("b", "2")]));
    database.write(|tx| setting_set(tx, "a", None)).await;
    assert_eq!(database.read(setting_list).await, BTreeMap::from([pair("b", "2")]));
}

#[tokio::test]
async fn the_store_epoch_is_the_stores_own() {
    let database = Database::new();
    for value in [Some("9"), None] {
        let refused = database.store.write(move |tx| setting_set(tx, "store_epoch", value)).await;
        assert!(refused.is_err(), "{refused:?}");
    }
    assert_eq!(database.read(store_epoch_fetch).await, 1);
}
