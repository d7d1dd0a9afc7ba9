//! Rows 21 to 32: interpreters, and living off the land.

use crate::row::Row;

/// The rows.
pub(super) const ROWS: &[Row] = &[];
