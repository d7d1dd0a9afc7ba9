//! The order of a list, and the tokens that name a place in it.
//!
//! Every order ends in the id, so that no two rows share a place. A token holds the place of a page's last row: what
//! the row is ordered by, with a digest that binds it to the order. Whoever makes one up sees what a query shows anyway.

use odata::{Direction, OrderBy, Query, Type};
use rusqlite::Row;
use rusqlite::types::Value as Bound;
use sha2::Digest as _;

use super::condition::Builder;
use super::{Column, Entity};
use crate::StoreError;

/// Bytes of the digest in a token: enough to notice what was cut, changed, or taken from another query.
const DIGEST_BYTES: usize = 8;

/// The terms of an order, most significant first.
pub(super) struct Order {
    terms: Vec<Term>,
    /// Says which order it is.
    name: String,
    /// Every term of the entity's own order, in one direction or all in the other.
    is_default: bool,
}

struct Term {
    /// Never null.
    sql: String,
    direction: Direction,
}

impl Order {
    /// The order that a query asks for, or the entity's own.
    pub(super) fn of<T>(
        query: &Query,
        entity: &Entity<T>,
        builder: &mut Builder<'_>,
    ) -> Result<Self, StoreError> {
        let mut columns = Vec::new();
        for OrderBy { property, direction } in &query.order_by {
            columns.push((builder.column(property)?, *direction));
        }
        let (default, default_direction) = entity.default_order;
        if columns.is_empty() {
            columns.push((builder.column_named(default)?, default_direction));
        }
        if !columns.iter().any(|(column, _)| column.property.name == "id") {
            // In the direction of the term before it, so that one index serves both.
            let direction = columns.last().map_or(default_direction, |(_, direction)| *direction);
            columns.push((builder.column_named("id")?, direction));
        }
        let by: Vec<String> = columns
            .iter()
            .map(|(column, direction)| format!("{} {direction:?}", column.property.name))
            .collect();
        let default_terms: &[&str] = if default == "id" { &["id"] } else { &[default, "id"] };
        let one_direction =
            columns.windows(2).all(|pair| pair.iter().all(|(_, d)| Some(d) == pair.first().map(|(_, d)| d)));
        let is_default = one_direction
            && columns.iter().map(|(column, _)| column.property.name).eq(default_terms.iter().copied());
        let name = format!("{} {}", entity.table, by.join(","));
        let mut order = Self { terms: Vec::new(), name, is_default };
        for (column, direction) in columns {
            order.push(&column, direction, builder);
        }
        Ok(order)
    }

    fn push(&mut self, column: &Column, direction: Direction, builder: &mut Builder<'_>) {
        let sql = builder.sql(column);
        if !column.may_be_null {
            self.terms.push(Term { sql, direction });
            return;
        }
        // Null comes before every value, whatever the database thinks of it.
        let least = match column.property.kind {
            Type::String | Type::Guid | Type::Strings => "''",
            Type::Integer | Type::Boolean | Type::DateTime | Type::Enum(_) => "0",
        };
        self.terms.push(Term { sql: format!("CASE WHEN {sql} IS NULL THEN 0 ELSE 1 END"), direction });
        self.terms.push(Term { sql: format!("coalesce({sql}, {least})"), direction });
    }

    /// What a row is ordered by, as columns of the result.
    pub(super) fn keys(&self) -> String {
        let keys = self.terms.iter().enumerate().map(|(index, term)| format!("{} AS key_{index}", term.sql));
        keys.collect::<Vec<_>>().join(", ")
    }

    /// What stands behind `ORDER BY`.
    pub(super) fn sql(&self) -> String {
        let terms = self.terms.iter().map(|term| match term.direction {
            Direction::Ascending => format!("{} ASC", term.sql),
            Direction::Descending => format!("{} DESC", term.sql),
        });
        terms.collect::<Vec<_>>().join(", ")
    }

    /// What stands behind `ORDER BY` where the rows have the keys as columns, of a table with this prefix.
    pub(super) fn by_key(&self, prefix: &str) -> String {
        let terms = self.terms.iter().enumerate().map(|(index, term)| match term.direction {
            Direction::Ascending => format!("{prefix}key_{index} ASC"),
            Direction::Descending => format!("{prefix}key_{index} DESC"),
        });
        terms.collect::<Vec<_>>().join(", ")
    }

    /// The keys, of a table that has them as columns, as columns of the result.
    pub(super) fn key_columns(&self, prefix: &str) -> String {
        let keys = (0..self.terms.len()).map(|index| format!("{prefix}key_{index} AS key_{index}"));
        keys.collect::<Vec<_>>().join(", ")
    }

    /// Whether it is the entity's own order, or that backward.
    pub(super) fn is_default(&self) -> bool {
        self.is_default
    }

    /// What rows are ordered by first.
    pub(super) fn first(&self) -> &str {
        self.terms.first().map_or("", |term| &term.sql)
    }

    /// How the first key of a row compares to that of a row behind it.
    pub(super) fn sign_before(&self) -> &'static str {
        match self.terms.first().map(|term| term.direction) {
            Some(Direction::Ascending) | None => "<=",
            Some(Direction::Descending) => ">=",
        }
    }

    /// The condition of the rows behind the place that a token names.
    pub(super) fn behind(
        &self,
        token: Option<&str>,
        builder: &mut Builder<'_>,
    ) -> Result<Option<String>, StoreError> {
        let Some(token) = token else { return Ok(None) };
        let place = self.place(token).ok_or_else(|| bad_token(token))?;
        let bound: Vec<String> = place.into_iter().map(|value| builder.bind(value)).collect();
        let mut terms = self.terms.iter().zip(&bound);
        // The last term decides among the rows that are equal in all before it.
        let behind = terms.clone().rev().fold(None, |later, (Term { sql, direction }, value)| {
            let sign = sign(*direction);
            Some(match later {
                None => format!("{sql} {sign} {value}"),
                Some(later) => format!("({sql} {sign} {value} OR ({sql} = {value} AND {later}))"),
            })
        });
        // Implied by the rest, but an index serves this form only.
        let bound =
            terms.next().map(|(term, value)| format!("{} {}= {value}", term.sql, sign(term.direction)));
        Ok(Some([bound, behind].into_iter().flatten().collect::<Vec<_>>().join(" AND ")))
    }

    /// The token of a row's place.
    pub(super) fn token(&self, row: &Row<'_>) -> Result<String, StoreError> {
        let mut place = Vec::new();
        for index in 0..self.terms.len() {
            match row.get(format!("key_{index}").as_str())? {
                Bound::Integer(number) => {
                    place.push(NUMBER);
                    place.extend(number.to_be_bytes());
                }
                Bound::Text(text) => {
                    place.push(TEXT);
                    place.extend((text.len() as u64).to_be_bytes());
                    place.extend(text.into_bytes());
                }
                other @ (Bound::Null | Bound::Real(_) | Bound::Blob(_)) => {
                    return Err(StoreError::Damaged(format!("ordered by {}", other.data_type())));
                }
            }
        }
        Ok(hex::encode([self.digest(&place).as_slice(), &place].concat()))
    }

    fn place(&self, token: &str) -> Option<Vec<Bound>> {
        let bytes = hex::decode(token).ok()?;
        let (digest, mut rest) = bytes.split_first_chunk::<DIGEST_BYTES>()?;
        if *digest != self.digest(rest) {
            return None;
        }
        let mut place = Vec::new();
        while let Some((tag, tail)) = rest.split_first() {
            let (number, tail) = tail.split_first_chunk::<8>()?;
            let (value, tail) = match *tag {
                NUMBER => (Bound::Integer(i64::from_be_bytes(*number)), tail),
                TEXT => {
                    let length = usize::try_from(u64::from_be_bytes(*number)).ok()?;
                    let (text, tail) = tail.split_at_checked(length)?;
                    (Bound::Text(String::from_utf8(text.to_vec()).ok()?), tail)
                }
                _ => return None,
            };
            place.push(value);
            rest = tail;
        }
        (place.len() == self.terms.len()).then_some(place)
    }

    fn digest(&self, place: &[u8]) -> [u8; DIGEST_BYTES] {
        let digest =
            sha2::Sha256::new().chain_update(&self.name).chain_update([0]).chain_update(place).finalize();
        digest.first_chunk().copied().unwrap_or_default()
    }
}

const NUMBER: u8 = 0;
const TEXT: u8 = 1;

fn sign(direction: Direction) -> &'static str {
    match direction {
        Direction::Ascending => ">",
        Direction::Descending => "<",
    }
}

fn bad_token(token: &str) -> StoreError {
    StoreError::Query(odata::Error {
        option: "$skiptoken".to_owned(),
        position: 1,
        expected: "the token of a next page of this query".to_owned(),
        found: format!("{:?}", token.chars().take(24).collect::<String>()),
    })
}
