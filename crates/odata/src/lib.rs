//! OData query options: from the raw query string of a request to a typed, capped [`Query`].
//!
//! Owns the grammar of `$filter`, `$orderby`, `$top`, `$skip`, `$select`, `$count` and `$skiptoken`, the limits of each,
//! and what a caller is told when one is wrong. Properties are found in a [`Schema`], so a tree that was built holds no
//! unknown name and no comparison across types. Deliberately knows no entity and no database: the schemas and the
//! meaning of their properties are the store's.
//!
//! Printing a [`Query`] gives a query string that parses to the same query.
#![forbid(unsafe_code)]

mod date_time;
mod error;
mod filter;
mod options;
mod query;
mod schema;

pub use date_time::parse_date_time;
pub use error::Error;
pub use options::parse;
pub use query::{Comparison, Direction, Filter, OrderBy, Query, Subject, Test, TextFunction, Value};
pub use schema::{Property, Schema, Type};

/// The longest query string, in bytes: room for a `$filter` of the greatest length with every byte encoded, and for a
/// `$skiptoken`.
pub const QUERY_BYTES_MAX: usize = 48 * 1024;
/// The longest `$filter`, in bytes after decoding: about 180 machine ids.
pub const FILTER_BYTES_MAX: usize = 8 * 1024;
/// The most parts of a `$filter`: conditions, groups and listed values.
pub const FILTER_NODES_MAX: usize = 500;
/// How deep `( )`, `not` and `any( )` may nest: no condition of a person comes near, and no stack overflows.
pub const FILTER_DEPTH_MAX: usize = 32;
/// The most properties in an `$orderby`.
pub const ORDER_BY_MAX: usize = 8;
/// The largest `$top`, which is also the page size.
pub const TOP_MAX: u32 = 10_000;
