//! How statements reach SQLite.
//!
//! They are written with `$1`, `$2`, ... as PostgreSQL numbers them. To SQLite these are names, which it numbers as
//! they appear; its own spelling of a number is `?1`.

use rusqlite::{CachedStatement, Connection, Params};

/// A connection inside a transaction.
pub(crate) struct Sql<'a>(pub(crate) &'a Connection);

impl Sql<'_> {
    /// The statement, from the cache when it was used before.
    pub(crate) fn prepare_cached(&self, statement: &str) -> rusqlite::Result<CachedStatement<'_>> {
        self.0.prepare_cached(&statement.replace('$', "?"))
    }

    /// Runs a statement once; how many rows it changed.
    pub(crate) fn execute(&self, statement: &str, values: impl Params) -> rusqlite::Result<usize> {
        self.0.execute(&statement.replace('$', "?"), values)
    }
}
