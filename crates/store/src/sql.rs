//! How statements reach SQLite.
//!
//! They are written with `$1`, `$2`, ... as PostgreSQL numbers them. To SQLite these are names, which it numbers as
//! they appear; its own spelling of a number is `?1`.

use rusqlite::types::Value;
use rusqlite::{CachedStatement, Connection, Params};

/// The most rows that one statement takes: SQLite binds 32,766 values, the widest row has fewer than thirty.
pub(crate) const ROWS_MAX: usize = 1000;

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

/// The places of a list of values: `$1, $2, $3`.
pub(crate) fn places(count: usize) -> String {
    places_from(1, count)
}

/// The places of a list of values, from `$first` on.
pub(crate) fn places_from(first: usize, count: usize) -> String {
    row(first, count, &[])
}

/// The places, from `$first` on, of rows that are a table by themselves. PostgreSQL takes the types of its columns from
/// the first row.
pub(crate) fn typed_rows(first: usize, count: usize, types: &[&str]) -> String {
    let columns = types.len();
    let rows = (0..count).map(|index| {
        let types = if index == 0 { types } else { &[] };
        format!("({})", row(first + index * columns, columns, types))
    });
    rows.collect::<Vec<_>>().join(", ")
}

/// What rows must meet, for statements that are not the same for every caller.
#[derive(Default)]
pub(crate) struct Conditions {
    sql: Vec<String>,
    values: Vec<Value>,
}

impl Conditions {
    /// Rows must compare so with a value: `name =`, `at >=`.
    pub(crate) fn require(&mut self, comparison: &str, value: impl Into<Value>) {
        let place = self.bind(value);
        self.sql.push(format!("{comparison} {place}"));
    }

    /// Rows must meet a condition whose values are bound already.
    pub(crate) fn require_sql(&mut self, condition: String) {
        self.sql.push(condition);
    }

    /// The place of a value.
    pub(crate) fn bind(&mut self, value: impl Into<Value>) -> String {
        self.values.push(value.into());
        format!("${}", self.values.len())
    }

    /// The condition, and its values.
    pub(crate) fn finish(self) -> (String, Vec<Value>) {
        let sql = if self.sql.is_empty() { "1 = 1".to_owned() } else { self.sql.join(" AND ") };
        (sql, self.values)
    }
}

fn row(first: usize, columns: usize, types: &[&str]) -> String {
    let places = (0..columns).map(|column| {
        let number = first + column;
        types.get(column).map_or_else(|| format!("${number}"), |kind| format!("CAST(${number} AS {kind})"))
    });
    places.collect::<Vec<_>>().join(", ")
}

/// What a plan that sorts says.
#[cfg(test)]
pub(crate) const SORTS: &str = "USE TEMP B-TREE";

/// A database without rows.
#[cfg(test)]
pub(crate) fn migrated() -> Connection {
    let mut connection = Connection::open_in_memory().unwrap();
    crate::migrations::run(&mut connection).unwrap();
    connection
}

/// How SQLite carries out a statement.
#[cfg(test)]
pub(crate) fn plan_of(statement: &str) -> String {
    let connection = migrated();
    let sql = Sql(&connection);
    let mut statement = sql.prepare_cached(&format!("EXPLAIN QUERY PLAN {statement}")).unwrap();
    let mut rows = statement.raw_query();
    let mut steps: Vec<String> = Vec::new();
    while let Some(row) = rows.next().unwrap() {
        steps.push(row.get("detail").unwrap());
    }
    steps.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_count_through_the_rows() {
        assert_eq!(places(3), "$1, $2, $3");
        assert_eq!(places_from(2, 2), "$2, $3");
        assert_eq!(typed_rows(2, 2, &["TEXT", "BIGINT"]), "(CAST($2 AS TEXT), CAST($3 AS BIGINT)), ($4, $5)");
    }
}
