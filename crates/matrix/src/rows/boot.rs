//! Rows 83 to 90: boot, update, recovery.

use crate::row::Row;

/// The rows.
pub(super) const ROWS: &[Row] = &[];
