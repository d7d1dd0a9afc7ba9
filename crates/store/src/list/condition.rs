//! From a `$filter` to the condition of a statement.
//!
//! Every test is two-valued: null is handled here, so that `NOT` means what it says. Text is compared byte by byte,
//! which for UTF-8 is the order of code points, and without patterns, so no character of a caller's has a meaning.

use domain::time::Timestamp;
use odata::{Comparison, Filter, Property, Subject, Test, TextFunction, Type, Value};
use rusqlite::params_from_iter;
use rusqlite::types::Value as Bound;
use uuid::Uuid;

use super::{Column, INACTIVE_SINCE, column};
use crate::{StoreError, Tx};

const NEVER: &str = "1 = 0";
const ALWAYS: &str = "1 = 1";

/// What `any( )` looks into.
const ELEMENT: Column = column("element", Type::String, "tag");

/// The most elements of a collection whose rows are collected before any row is looked at.
const COLLECTED_MAX: i64 = 2000;

/// Makes conditions, and collects the values that are bound in them.
pub(super) struct Builder<'a> {
    tx: &'a Tx<'a>,
    columns: &'static [Column],
    inactive_since: Timestamp,
    values: Vec<Bound>,
}

impl<'a> Builder<'a> {
    pub(super) fn new(tx: &'a Tx<'a>, columns: &'static [Column], inactive_since: Timestamp) -> Self {
        Self { tx, columns, inactive_since, values: Vec::new() }
    }

    /// Binds a value; how the statement names it.
    pub(super) fn bind(&mut self, value: impl Into<Bound>) -> String {
        self.values.push(value.into());
        format!("${}", self.values.len())
    }

    /// All values that were bound, in the order of their numbers.
    pub(super) fn values(&self) -> &[Bound] {
        &self.values
    }

    /// The column of a property.
    pub(super) fn column(&self, property: &Property) -> Result<Column, StoreError> {
        self.column_named(property.name).and_then(|column| {
            if column.property == *property { Ok(column) } else { Err(other_entity(property.name)) }
        })
    }

    /// The column of the property with this name.
    pub(super) fn column_named(&self, name: &str) -> Result<Column, StoreError> {
        let found = self.columns.iter().find(|column| column.property.name == name);
        found.copied().ok_or_else(|| other_entity(name))
    }

    /// The SQL of a column, to be used: a value that it binds must occur in the statement.
    pub(super) fn sql(&mut self, column: &Column) -> String {
        if column.sql.contains(INACTIVE_SINCE) {
            let since = self.bind(self.inactive_since.ticks());
            column.sql.replace(INACTIVE_SINCE, &since)
        } else {
            column.sql.to_owned()
        }
    }

    /// The condition of a filter.
    pub(super) fn filter(&mut self, filter: &Filter) -> Result<String, StoreError> {
        match filter {
            Filter::And(parts) => self.join(parts, " AND "),
            Filter::Or(parts) => self.join(parts, " OR "),
            Filter::Not(inner) => Ok(format!("NOT ({})", self.filter(inner)?)),
            Filter::Test(Subject::Property(property), test) => {
                let column = self.column(property)?;
                Ok(match column.looked_up {
                    None => self.test(&column, test),
                    Some((condition, sql)) => {
                        let test = self.test(&Column { sql, ..column }, test);
                        format!("{condition}{test})")
                    }
                })
            }
            Filter::Test(Subject::Element, test) => Ok(self.test(&ELEMENT, test)),
            Filter::Any(property, inner) => {
                let table = self.column(property)?.sql;
                let inner =
                    inner.as_deref().map_or_else(|| Ok(ALWAYS.to_owned()), |inner| self.filter(inner))?;
                self.any(table, &inner)
            }
        }
    }

    fn join(&mut self, parts: &[Filter], operator: &str) -> Result<String, StoreError> {
        let parts = parts.iter().map(|part| self.filter(part)).collect::<Result<Vec<_>, _>>()?;
        Ok(balanced(&parts, operator))
    }

    /// Few elements say at once which rows there are; of many, each row looks for its own.
    fn any(&self, table: &str, inner: &str) -> Result<String, StoreError> {
        let most = COLLECTED_MAX + 1;
        let mut statement = self.tx.0.prepare_cached(&format!(
            "SELECT count(*) FROM (SELECT 1 FROM {table} WHERE {inner} LIMIT {most})"
        ))?;
        let places = statement.parameter_count();
        let elements: i64 =
            statement.query_row(params_from_iter(self.values.iter().take(places)), |row| row.get(0))?;
        Ok(if elements < most {
            format!("id IN (SELECT machine FROM {table} WHERE {inner})")
        } else {
            format!("EXISTS (SELECT 1 FROM {table} WHERE machine = id AND {inner})")
        })
    }

    fn test(&mut self, column: &Column, test: &Test) -> String {
        match test {
            Test::Compare(Comparison::Equal, Value::Null) => is_null(column),
            Test::Compare(_, Value::Null) => format!("NOT ({})", is_null(column)),
            Test::Compare(comparison, value) => {
                let sql = self.sql(column);
                let compared =
                    format!("{sql} {} {}", operator(*comparison), self.bind(stored(column, value)));
                if column.may_be_null && *comparison == Comparison::NotEqual {
                    format!("({} OR {compared})", is_null(column))
                } else {
                    not_null(column, &compared)
                }
            }
            Test::In(values) => {
                let mut equal = Vec::new();
                if values.contains(&Value::Null) {
                    equal.push(is_null(column));
                }
                let values: Vec<_> = values.iter().filter(|value| **value != Value::Null).collect();
                if !values.is_empty() {
                    let sql = self.sql(column);
                    let bound: Vec<_> =
                        values.into_iter().map(|value| self.bind(stored(column, value))).collect();
                    equal.push(not_null(column, &format!("{sql} IN ({})", bound.join(", "))));
                }
                format!("({})", equal.join(" OR "))
            }
            Test::Text(function, text) => {
                let found = self.text_test(column, *function, text);
                not_null(column, &found)
            }
        }
    }

    fn text_test(&mut self, column: &Column, function: TextFunction, text: &str) -> String {
        let sql = self.sql(column);
        let text = cased(column, text);
        match function {
            // A range, so that an index serves it.
            TextFunction::StartsWith => {
                let end = end_of_prefix(&text);
                let from = format!("{sql} >= {}", self.bind(text));
                match end {
                    Some(end) => format!("({from} AND {sql} < {})", self.bind(end)),
                    None => from,
                }
            }
            TextFunction::EndsWith => {
                let text = self.bind(text);
                format!(
                    "(length({sql}) >= length({text}) AND substr({sql}, length({sql}) - length({text}) + 1) = {text})"
                )
            }
            TextFunction::Contains => format!("instr({sql}, {}) > 0", self.bind(text)),
        }
    }
}

/// Parts joined as a balanced tree: SQLite takes no deeper than a thousand.
fn balanced(parts: &[String], operator: &str) -> String {
    match parts {
        [] => ALWAYS.to_owned(),
        [part] => part.clone(),
        _ => {
            let (left, right) = parts.split_at(parts.len() / 2);
            format!("({}{operator}{})", balanced(left, operator), balanced(right, operator))
        }
    }
}

fn other_entity(name: &str) -> StoreError {
    StoreError::Unsupported(format!("{name} is a property of another entity"))
}

fn is_null(column: &Column) -> String {
    if column.may_be_null { format!("{} IS NULL", column.sql) } else { NEVER.to_owned() }
}

/// A condition that is false for null.
fn not_null(column: &Column, condition: &str) -> String {
    if column.may_be_null {
        format!("({} IS NOT NULL AND {condition})", column.sql)
    } else {
        condition.to_owned()
    }
}

fn operator(comparison: Comparison) -> &'static str {
    match comparison {
        Comparison::Equal => "=",
        Comparison::NotEqual => "<>",
        Comparison::Greater => ">",
        Comparison::GreaterOrEqual => ">=",
        Comparison::Less => "<",
        Comparison::LessOrEqual => "<=",
    }
}

/// The value as the column holds it.
pub(super) fn stored(column: &Column, value: &Value) -> Bound {
    match value {
        Value::Null => Bound::Null,
        Value::String(text) => Bound::Text(cased(column, text)),
        Value::Integer(number) | Value::DateTime(number) => Bound::Integer(*number),
        Value::Boolean(value) => Bound::Integer(i64::from(*value)),
        Value::Guid(bits) => Bound::Text(Uuid::from_u128(*bits).to_string()),
        Value::Enum(name) => {
            let names = if let Type::Enum(names) = column.property.kind { names } else { &[] };
            let position = names.iter().position(|known| known == name);
            position.and_then(|position| i64::try_from(position).ok()).map_or(Bound::Null, Bound::Integer)
        }
    }
}

pub(super) fn cased(column: &Column, text: &str) -> String {
    if column.lower_case { text.to_ascii_lowercase() } else { text.to_owned() }
}

/// The first text behind all that start with `prefix`; none when nothing is.
pub(super) fn end_of_prefix(prefix: &str) -> Option<String> {
    let mut end: Vec<char> = prefix.chars().collect();
    while let Some(last) = end.pop() {
        if let Some(next) = (last..=char::MAX).nth(1) {
            end.push(next);
            return Some(end.into_iter().collect());
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_prefix_is_the_next_text_that_does_not_have_it() {
        for (prefix, end) in [
            ("a", Some("b")),
            ("az", Some("a{")),
            ("", None),
            ("a\u{10ffff}", Some("b")),
            ("\u{10ffff}\u{10ffff}", None),
            ("\u{d7ff}", Some("\u{e000}")),
        ] {
            assert_eq!(end_of_prefix(prefix).as_deref(), end, "{prefix:?}");
        }
    }
}
