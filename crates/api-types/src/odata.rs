//! How entities and collections are wrapped.

use serde::{Deserialize, Serialize};

/// One entity with its context.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entity<T> {
    /// `{base}/api/$metadata#{set}/$entity`.
    #[serde(rename = "@odata.context")]
    pub context: String,
    /// The entity.
    #[serde(flatten)]
    pub entity: T,
}

/// A list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Collection<T> {
    /// `{base}/api/$metadata#{set}`.
    #[serde(rename = "@odata.context", default, skip_serializing_if = "Option::is_none")]
    pub context: Option<String>,
    /// How many match in all, when asked for.
    #[serde(rename = "@odata.count", default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
    /// The entities of this page.
    pub value: Vec<T>,
    /// Where the next page is; absent on the last.
    #[serde(rename = "@odata.nextLink", default, skip_serializing_if = "Option::is_none")]
    pub next_link: Option<String>,
}
