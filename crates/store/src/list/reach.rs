//! Which values of one column the rows of a filter can have.
//!
//! A reach is never too small: a row whose value lies outside of it does not pass the filter. So it may choose the
//! index that rows are sought in; whether a row passes is still decided by the filter's own condition.

use odata::{Comparison, Filter, Subject, Test, TextFunction, Type, Value};
use rusqlite::types::Value as Bound;

use super::condition::{cased, end_of_prefix, stored};
use super::{Column, HEALTH, LAST_SEEN};
use domain::time::Timestamp;

/// A stored value. Those of one column are of one kind.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Key {
    Integer(i64),
    Text(String),
}

impl From<Key> for Bound {
    fn from(key: Key) -> Self {
        match key {
            Key::Integer(number) => Self::Integer(number),
            Key::Text(text) => Self::Text(text),
        }
    }
}

/// A place between values.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Cut {
    /// Before every value.
    Start,
    /// Right before a value, or right behind it when the flag is set.
    At(Key, bool),
    /// Behind every value.
    End,
}

/// A set of values, with or without null.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Reach {
    pub(super) null: bool,
    /// From the first cut to the second: in order, none empty, none touching the next.
    pub(super) spans: Vec<(Cut, Cut)>,
}

impl Reach {
    pub(super) fn everything() -> Self {
        Self { null: true, spans: vec![(Cut::Start, Cut::End)] }
    }

    fn nothing() -> Self {
        Self { null: false, spans: Vec::new() }
    }

    fn not_null() -> Self {
        Self { null: false, ..Self::everything() }
    }

    fn span(from: Cut, to: Cut) -> Self {
        Self { null: false, spans: vec![(from, to)] }
    }

    /// These values.
    pub(super) fn of(keys: impl IntoIterator<Item = Option<Key>>) -> Self {
        Self::union(keys.into_iter().map(|key| match key {
            None => Self { null: true, spans: Vec::new() },
            Some(key) => Self::span(Cut::At(key.clone(), false), Cut::At(key, true)),
        }))
    }

    pub(super) fn union(sets: impl IntoIterator<Item = Self>) -> Self {
        let (mut null, mut all) = (false, Vec::new());
        for set in sets {
            null |= set.null;
            all.extend(set.spans);
        }
        all.sort_unstable();
        let mut spans: Vec<(Cut, Cut)> = Vec::new();
        for (from, to) in all {
            match spans.last_mut() {
                Some((_, end)) if *end >= from => *end = to.max(end.clone()),
                Some(_) | None => spans.push((from, to)),
            }
        }
        Self { null, spans }
    }

    pub(super) fn complement(self) -> Self {
        let mut spans = Vec::new();
        let mut from = Cut::Start;
        for (start, end) in self.spans {
            if from < start {
                spans.push((from, start));
            }
            from = end;
        }
        if from < Cut::End {
            spans.push((from, Cut::End));
        }
        Self { null: !self.null, spans }
    }

    pub(super) fn intersection(sets: impl IntoIterator<Item = Self>) -> Self {
        Self::union(sets.into_iter().map(Self::complement)).complement()
    }

    pub(super) fn contains(&self, key: Option<&Key>) -> bool {
        let Some(key) = key else { return self.null };
        let value = Cut::At(key.clone(), false);
        self.spans.iter().any(|(from, to)| *from <= value && value < *to)
    }

    /// Only what can be stored in the column: null where it is allowed, the names of an enumeration.
    pub(super) fn storable(self, column: &Column) -> Self {
        let mut domain = match column.property.kind {
            Type::Enum(names) => Self::of((0..).zip(names).map(|(position, _)| Some(Key::Integer(position)))),
            Type::Boolean => Self::of([Some(Key::Integer(0)), Some(Key::Integer(1))]),
            Type::String | Type::Strings | Type::Guid | Type::Integer | Type::DateTime => Self::not_null(),
        };
        domain.null = column.may_be_null;
        Self::intersection([self, domain])
    }

    pub(super) fn is_nothing(&self) -> bool {
        *self == Self::nothing()
    }

    /// Whether it leaves no value out that may be stored.
    pub(super) fn is_everything(&self, column: &Column) -> bool {
        *self == Self::everything().storable(column)
    }
}

/// What a filter lets through of a column: of [`LAST_SEEN`], what it says of health is taken into account.
pub(super) fn reach(filter: &Filter, column: &Column, inactive_since: Timestamp) -> Reach {
    Reacher { column, inactive_since }.of(filter, true).storable(column)
}

struct Reacher<'a> {
    column: &'a Column,
    inactive_since: Timestamp,
}

impl Reacher<'_> {
    /// The reach of the filter, or of its opposite.
    fn of(&self, filter: &Filter, holds: bool) -> Reach {
        match (filter, holds) {
            (Filter::And(parts), true) | (Filter::Or(parts), false) => {
                Reach::intersection(parts.iter().map(|part| self.of(part, holds)))
            }
            (Filter::And(parts), false) | (Filter::Or(parts), true) => {
                Reach::union(parts.iter().map(|part| self.of(part, holds)))
            }
            (Filter::Not(inner), _) => self.of(inner, !holds),
            (Filter::Any(..), _) => Reach::everything(),
            (Filter::Test(subject, test), _) => {
                let property = match subject {
                    Subject::Property(property) => property.name,
                    Subject::Element => "element",
                };
                if property == self.column.property.name {
                    self.of_test(test, holds)
                } else if property == HEALTH.property.name && self.column.property.name == LAST_SEEN {
                    self.of_health(test, holds)
                } else {
                    Reach::everything()
                }
            }
        }
    }

    fn of_test(&self, test: &Test, holds: bool) -> Reach {
        let column = self.column;
        let exact = match test {
            Test::Compare(comparison, value) => match (comparison, key(column, value)) {
                (Comparison::Equal, key) => Reach::of([key]),
                (Comparison::NotEqual, key) => Reach::of([key]).complement(),
                // Nothing is before or after null.
                (_, None) => Reach::nothing(),
                (Comparison::Greater, Some(key)) => Reach::span(Cut::At(key, true), Cut::End),
                (Comparison::GreaterOrEqual, Some(key)) => Reach::span(Cut::At(key, false), Cut::End),
                (Comparison::Less, Some(key)) => Reach::span(Cut::Start, Cut::At(key, false)),
                (Comparison::LessOrEqual, Some(key)) => Reach::span(Cut::Start, Cut::At(key, true)),
            },
            Test::In(values) => Reach::of(values.iter().map(|value| key(column, value))),
            Test::Text(TextFunction::StartsWith, text) => {
                let text = cased(column, text);
                let end = end_of_prefix(&text).map_or(Cut::End, |end| Cut::At(Key::Text(end), false));
                Reach::span(Cut::At(Key::Text(text), false), end)
            }
            // What they leave out is not known, but that they leave out null.
            Test::Text(TextFunction::EndsWith | TextFunction::Contains, _) => {
                return if holds { Reach::not_null() } else { Reach::everything() };
            }
        };
        if holds { exact } else { exact.complement() }
    }

    /// Health is a question of when a machine was last seen.
    fn of_health(&self, test: &Test, holds: bool) -> Reach {
        let health = Reacher { column: &HEALTH, inactive_since: self.inactive_since }.of_test(test, holds);
        let since = || Cut::At(Key::Integer(self.inactive_since.ticks()), true);
        let active = health.contains(Some(&Key::Integer(0))).then(|| Reach::span(since(), Cut::End));
        let inactive = health.contains(Some(&Key::Integer(1))).then(|| Reach::span(Cut::Start, since()));
        Reach::union(active.into_iter().chain(inactive))
    }
}

fn key(column: &Column, value: &Value) -> Option<Key> {
    match stored(column, value) {
        Bound::Integer(number) => Some(Key::Integer(number)),
        Bound::Text(text) => Some(Key::Text(text)),
        Bound::Null | Bound::Real(_) | Bound::Blob(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_reach() -> impl Strategy<Value = Reach> {
        let cut = prop_oneof![
            1 => Just(Cut::Start),
            6 => (0..8_i64, any::<bool>()).prop_map(|(number, after)| Cut::At(Key::Integer(number), after)),
            1 => Just(Cut::End),
        ];
        let span = (cut.clone(), cut).prop_map(|(a, b)| if a < b { (a, b) } else { (b, a) });
        (any::<bool>(), proptest::collection::vec(span, 0..4)).prop_map(|(null, spans)| {
            let spans = spans.into_iter().filter(|(from, to)| from < to);
            let set = Reach::union(spans.map(|(from, to)| Reach::span(from, to)));
            Reach { null, ..set }
        })
    }

    fn keys() -> impl Iterator<Item = Option<Key>> {
        (-1..9).map(|number| Some(Key::Integer(number))).chain([None])
    }

    proptest! {
        #[test]
        fn sets_are_what_their_values_say(a in any_reach(), b in any_reach()) {
            for key in keys() {
                let key = key.as_ref();
                let (in_a, in_b) = (a.contains(key), b.contains(key));
                prop_assert_eq!(Reach::union([a.clone(), b.clone()]).contains(key), in_a || in_b);
                prop_assert_eq!(Reach::intersection([a.clone(), b.clone()]).contains(key), in_a && in_b);
                prop_assert_eq!(a.clone().complement().contains(key), !in_a);
            }
            prop_assert_eq!(a.clone().complement().complement(), a);
        }
    }
}
