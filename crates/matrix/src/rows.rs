//! The rows, by section of the bypass matrix.

mod agent;
mod boot;
mod content;
mod inject;
mod interpreters;
mod possible;
mod start;
mod worlds;

use crate::row::Row;

/// All rows that are written, in their order.
pub fn all() -> impl Iterator<Item = &'static Row> {
    [
        start::ROWS,
        interpreters::ROWS,
        content::ROWS,
        worlds::ROWS,
        inject::ROWS,
        agent::ROWS,
        boot::ROWS,
        possible::ROWS,
    ]
    .into_iter()
    .flatten()
}
