//! Rows 60 to 67: injecting into what is already allowed.

use crate::row::Row;

/// The rows.
pub(super) const ROWS: &[Row] = &[];
