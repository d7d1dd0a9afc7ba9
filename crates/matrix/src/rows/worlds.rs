//! Rows 51 to 59: namespaces, mounts, other worlds.

use crate::row::Row;

/// The rows.
pub(super) const ROWS: &[Row] = &[];
