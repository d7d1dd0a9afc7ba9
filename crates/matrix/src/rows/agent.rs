//! Rows 68 to 82: attacking the agent or its limits.

use crate::row::Row;

/// The rows.
pub(super) const ROWS: &[Row] = &[];
