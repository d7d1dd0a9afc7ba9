//! Rows 33 to 50: changing the file under the check.

use crate::row::Row;

/// The rows.
pub(super) const ROWS: &[Row] = &[];
