//! Which way a query's rows are found.
//!
//! A page is read in the order of the list when its rows are frequent there, and from the index of a property when that
//! leaves few. SQLite's own choice needs statistics that are up to date and cannot know the values bound; here a look at
//! the index, cut off soon, says how many there are. The choice is written into the statement, so it is
//! the same in each database. It changes how long a query takes and never what it finds.

use std::collections::BTreeSet;

use domain::machine_group::MachineAccess;
use domain::time::Timestamp;
use odata::{Filter, Query, Subject};
use rusqlite::params_from_iter;
use rusqlite::types::Value as Bound;

use super::condition::Builder;
use super::order::Order;
use super::reach::{Cut, Key, Reach, reach};
use super::{CREATED, Column, Entity, GROUP, Index, UPDATED};
use crate::row::count;
use crate::{StoreError, Tx};

/// The most pieces of an index that are read side by side.
const PIECES_MAX: usize = 16;

/// Where one way becomes better than another.
#[derive(Clone, Copy)]
pub(super) struct Limits {
    /// As many rows are soon found in an index and sorted.
    pub(super) few: i64,
    /// How many rows of the list's order are looked at for each row of the page, before the rows are sought in an index
    /// instead.
    pub(super) looked_at: i64,
}

/// Finding and sorting so few takes about 3 ms. Those of a filter that lets more than these of a million through are at
/// most fifty rows apart, unless they are at the far end of the order.
pub(super) const LIMITS: Limits = Limits { few: 20_000, looked_at: 100 };

/// What is known of a query before its rows are read.
pub(super) struct Plan<'a, T> {
    tx: &'a Tx<'a>,
    entity: &'a Entity<T>,
    builder: Builder<'a>,
    /// The order of the rows.
    pub(super) order: Order,
    /// What rows must meet, whatever way they are found.
    condition: Option<String>,
    /// What rows must meet because of the groups that the caller may see, unless they are found by these.
    access: Option<String>,
    /// The condition of the rows behind the last page.
    behind: Option<String>,
    offset: i64,
    limits: Limits,
    way: Way,
}

/// A statement, and the values that its places stand for: those in front, when there are more than places.
pub(super) struct Statement {
    pub(super) sql: String,
    pub(super) values: Vec<Bound>,
}

enum Way {
    /// Nothing passes.
    Nothing,
    /// In the list's order, from an end of its index, between these bounds; and when few are found near to that end,
    /// in an index.
    Ordered { bounds: Option<String>, else_in: Option<Pieces> },
    /// In an order of which SQLite makes the best.
    AnyOrder,
    /// Few, found in an index and sorted.
    Sorted(Pieces),
    /// Many in pieces of an index, each of which is in the list's order.
    Merged(Pieces),
}

/// Pieces of an index.
#[derive(Clone)]
struct Pieces {
    index: &'static str,
    /// The condition of each. They do not overlap.
    conditions: Vec<String>,
    /// In each, rows are in the default order.
    in_order: bool,
    /// They are the actions of the machines that the caller may see.
    by_access: bool,
}

impl<'a, T> Plan<'a, T> {
    pub(super) fn new(
        tx: &'a Tx<'a>,
        entity: &'a Entity<T>,
        query: &Query,
        access: &MachineAccess,
        inactive_since: Timestamp,
        limits: Limits,
    ) -> Result<Self, StoreError> {
        let mut builder = Builder::new(tx, entity.columns, inactive_since);
        let filter = query.filter.as_ref();
        let condition = filter.map(|filter| builder.filter(filter)).transpose()?;
        let order = Order::of(query, entity, &mut builder)?;
        let behind = order.behind(query.skip_token.as_deref(), &mut builder)?;
        let offset = if query.skip_token.is_some() { 0 } else { i64::from(query.skip.unwrap_or(0)) };
        let mut plan = Self {
            tx,
            entity,
            builder,
            order,
            condition,
            access: None,
            behind,
            offset,
            limits,
            way: Way::Nothing,
        };
        plan.way = plan.choose(filter, access, inactive_since)?;
        Ok(plan)
    }

    fn choose(
        &mut self,
        filter: Option<&Filter>,
        access: &MachineAccess,
        inactive_since: Timestamp,
    ) -> Result<Way, StoreError> {
        let entity = self.entity;
        let reach_of = |column: &Column| {
            filter.map_or_else(
                || Reach::everything().storable(column),
                |filter| reach(filter, column, inactive_since),
            )
        };
        let constant_missed = |column: &Column| {
            let constant = column.constant.map(|value| value.map(Key::Integer));
            constant.is_some_and(|value| !reach_of(column).contains(value.as_ref()))
        };
        if entity.columns.iter().any(constant_missed) {
            return Ok(Way::Nothing);
        }
        let mut named = BTreeSet::new();
        filter.iter().for_each(|filter| name(filter, &mut named));
        let mut candidates = Vec::new();
        let by_groups = match access {
            MachineAccess::All => None,
            MachineAccess::Groups(groups) if groups.is_empty() => return Ok(Way::Nothing),
            MachineAccess::Groups(groups) => Some(Reach::of(groups.iter().map(|id| Some(Key::Integer(*id))))),
        };
        if let MachineAccess::Groups(groups) = access {
            let places: Vec<String> = groups.iter().map(|group| self.builder.bind(*group)).collect();
            candidates.extend(self.require_groups(&places.join(", ")));
        }
        let in_default_order = self.order.is_default();
        let mut looked_through = None;
        for index in entity.indexes {
            let column = self.builder.column_named(index.property)?;
            let mut reach = reach_of(&column);
            if let Some(groups) = by_groups.clone().filter(|_| index.property == GROUP) {
                reach = Reach::intersection([reach, groups]);
            }
            if reach.is_nothing() {
                return Ok(Way::Nothing);
            }
            let everything = reach.is_everything(&column);
            if (index.property == CREATED && in_default_order)
                || (everything && !named.contains(index.property))
            {
                continue;
            }
            let Some(pieces) = self.pieces(index, &column, &reach) else { continue };
            if !everything {
                candidates.push(pieces);
            } else if named.len() == 1 {
                // What is asked cannot be sought, but an index that holds it is smaller than the table.
                looked_through = Some(pieces);
            }
        }
        let merges = |pieces: &Pieces| in_default_order && pieces.in_order;
        let exact = named.len() == 1 && by_groups.is_none();
        if let [only] = candidates.as_slice()
            && exact
            && merges(only)
        {
            return Ok(Way::Merged(only.clone()));
        }
        let (mut fewest, mut best) = (self.limits.few + 1, None);
        for pieces in &candidates {
            let rows = self.count_few(pieces)?;
            if rows < fewest {
                (fewest, best) = (rows, Some(pieces.clone()));
            }
        }
        if let Some(pieces) = best {
            return Ok(if merges(&pieces) { Way::Merged(pieces) } else { Way::Sorted(pieces) });
        }
        if !in_default_order {
            return Ok(Way::AnyOrder);
        }
        // Where the order's own index holds all, it is read faster than the rows of another.
        if !entity.covered
            && let Some(pieces) = candidates.iter().find(|pieces| merges(pieces))
        {
            return Ok(Way::Merged(pieces.clone()));
        }
        let bounds = self.bounds(&reach_of)?;
        if entity.covered && !exact {
            return Ok(Way::Ordered { bounds, else_in: None });
        }
        Ok(Way::Ordered { bounds, else_in: candidates.into_iter().next().or(looked_through) })
    }

    /// Lets only rows of these groups through. Of actions: where they can be found.
    fn require_groups(&mut self, places: &str) -> Option<Pieces> {
        if self.entity.columns.iter().any(|column| column.property.name == GROUP) {
            self.access = Some(format!("machine_group IN ({places})"));
            return None;
        }
        self.access = Some(format!(
            "EXISTS (SELECT 1 FROM machine WHERE machine.machine_group IN ({places}) \
             AND machine.id = machine_action.machine)"
        ));
        Some(Pieces {
            index: "machine_action_machine",
            conditions: vec![format!(
                "machine IN (SELECT id FROM machine WHERE machine_group IN ({places}))"
            )],
            in_order: false,
            by_access: true,
        })
    }

    /// The pieces of an index that hold a reach; none when there are too many.
    fn pieces(&mut self, index: &Index, column: &Column, reach: &Reach) -> Option<Pieces> {
        let sql = column.sql;
        let mut conditions = Vec::new();
        if reach.null && column.may_be_null {
            conditions.push(format!("{sql} IS NULL"));
        }
        let (points, ranges): (Vec<_>, Vec<_>) =
            reach.spans.iter().partition(|(from, to)| is_point(from, to));
        if conditions.len() + ranges.len() > PIECES_MAX {
            return None;
        }
        let in_order = index.in_order && ranges.is_empty() && conditions.len() + points.len() <= PIECES_MAX;
        let mut keys = Vec::new();
        for (from, _) in points {
            if let Cut::At(key, _) = from {
                keys.push(self.builder.bind(key.clone()));
            }
        }
        if in_order {
            conditions.extend(keys.iter().map(|key| format!("{sql} = {key}")));
        } else if !keys.is_empty() {
            conditions.push(format!("{sql} IN ({})", keys.join(", ")));
        }
        for (from, to) in ranges {
            let bounds = [self.bound(sql, from, ">=", ">"), self.bound(sql, to, "<", "<=")];
            let bounds: Vec<_> = bounds.into_iter().flatten().collect();
            // Without a bound all that is not null.
            conditions.push(if bounds.is_empty() {
                format!("{sql} IS NOT NULL")
            } else {
                bounds.join(" AND ")
            });
        }
        Some(Pieces { index: index.name, conditions, in_order, by_access: false })
    }

    fn bound(&mut self, sql: &str, cut: &Cut, before: &str, after: &str) -> Option<String> {
        match cut {
            Cut::Start | Cut::End => None,
            Cut::At(key, is_after) => {
                let operator = if *is_after { after } else { before };
                Some(format!("{sql} {operator} {}", self.builder.bind(key.clone())))
            }
        }
    }

    /// Where in the default order the rows of a filter can be.
    fn bounds(&mut self, reach_of: &impl Fn(&Column) -> Reach) -> Result<Option<String>, StoreError> {
        let column = self.builder.column_named(self.entity.default_order.0)?;
        let mut reach = reach_of(&column);
        if column.property.name == CREATED {
            // What was changed last before a time was created before it.
            let updated = reach_of(&self.builder.column_named(UPDATED)?);
            let end = updated.spans.last().map_or(Cut::End, |(_, end)| end.clone());
            let before = Reach { null: false, spans: vec![(Cut::Start, end)] };
            reach = Reach::intersection([reach, before]);
        }
        let (first, last) = (reach.spans.first(), reach.spans.last());
        let from = first.and_then(|(from, _)| self.bound(column.sql, from, ">=", ">"));
        let to = last.and_then(|(_, to)| self.bound(column.sql, to, "<", "<="));
        Ok(all([from, to]))
    }

    /// How many rows pieces of an index hold; one more than are few when there are more.
    fn count_few(&self, pieces: &Pieces) -> Result<i64, StoreError> {
        let (table, index, most) = (self.entity.table, pieces.index, self.limits.few + 1);
        let counts = pieces.conditions.iter().map(|condition| {
            if pieces.by_access {
                // Not more machines than rows are looked for, or a group of idle machines would be read in whole.
                let machines = condition.trim_start_matches("machine IN (").trim_end_matches(')');
                format!(
                    "(SELECT count(*) FROM (SELECT 1 FROM ({machines}) LIMIT {most}) AS counted CROSS JOIN \
                     {table} INDEXED BY {index} ON machine = counted.id LIMIT {most}))"
                )
            } else {
                format!(
                    "(SELECT count(*) FROM (SELECT 1 FROM {table} INDEXED BY {index} WHERE {condition} LIMIT {most}))"
                )
            }
        });
        let counts = counts.collect::<Vec<_>>().join(" + ");
        let sql = format!("SELECT {counts} AS rows");
        let mut statement = self.tx.0.prepare_cached(&sql)?;
        let places = statement.parameter_count();
        let mut rows = statement.query(params_from_iter(self.builder.values().iter().take(places)))?;
        let row = rows.next()?.ok_or_else(|| StoreError::Damaged("no count came back".to_owned()))?;
        count(row, "rows")
    }

    /// The statement that counts all rows of the filter; none when there is nothing to count.
    pub(super) fn count(&self) -> Result<Option<Statement>, StoreError> {
        let table = self.entity.table;
        let from_pieces = |pieces: &Pieces| {
            let condition = self.required(pieces.by_access);
            let counts = pieces.conditions.iter().map(|piece| {
                let condition = all([Some(piece.clone()), condition.clone()]).unwrap_or_default();
                format!("(SELECT count(*) FROM {table} INDEXED BY {} WHERE {condition})", pieces.index)
            });
            format!("SELECT {} AS rows", counts.collect::<Vec<_>>().join(" + "))
        };
        let sql = match &self.way {
            Way::Nothing => return Ok(None),
            Way::Sorted(pieces) | Way::Merged(pieces) => from_pieces(pieces),
            Way::Ordered { else_in: Some(pieces), .. } if pieces.by_access => from_pieces(pieces),
            Way::Ordered { .. } | Way::AnyOrder => {
                format!("SELECT count(*) AS rows FROM {table}{}", where_(self.required(false)))
            }
        };
        Ok(Some(self.statement(sql)))
    }

    /// The statements of a page. The first that yields as many rows as were asked for has them all, else the last has.
    pub(super) fn statements(&mut self, limit: u32) -> Result<Vec<Statement>, StoreError> {
        let limit = i64::from(limit);
        let cut = format!("LIMIT {} OFFSET {}", self.builder.bind(limit), self.builder.bind(self.offset));
        let most = self.builder.bind(limit.saturating_add(self.offset));
        let mut sql = Vec::new();
        match &self.way {
            Way::Nothing => {}
            Way::AnyOrder => sql.push(self.any_order(&cut)),
            Way::Merged(pieces) => sql.push(self.merged(pieces, &cut)),
            Way::Sorted(pieces) => sql.push(self.sorted(pieces, &cut, &most)),
            Way::Ordered { bounds, else_in } => {
                let condition = all([bounds.clone(), self.required(false), self.behind.clone()]);
                match else_in {
                    None => sql.push(self.ordered(condition, &cut)),
                    Some(pieces) => {
                        let all_or_few =
                            limit.saturating_add(self.offset).saturating_mul(self.limits.looked_at);
                        let near = self.near(bounds.as_ref(), all_or_few)?;
                        let is_all = near.is_none();
                        let sought = self.sorted(pieces, &cut, &most);
                        let near = near.map(|place| {
                            let sign = self.order.sign_before();
                            let place = self.builder.bind(place);
                            format!("{} {sign} {place}", self.order.first())
                        });
                        sql.push(self.ordered(all([near, condition]), &cut));
                        if !is_all {
                            sql.push(sought);
                        }
                    }
                }
            }
        }
        Ok(sql.into_iter().map(|sql| self.statement(sql)).collect())
    }

    /// By what the row is ordered that stands `rows` rows behind the start; none when there are not as many.
    fn near(&self, bounds: Option<&String>, rows: i64) -> Result<Option<Bound>, StoreError> {
        let Entity { table, order_index, .. } = self.entity;
        let sql = format!(
            "SELECT {} AS place FROM {table} INDEXED BY {order_index}{} ORDER BY {} LIMIT 1 OFFSET {rows}",
            self.order.first(),
            where_(all([bounds.cloned(), self.behind.clone()])),
            self.order.sql(),
        );
        let mut statement = self.tx.0.prepare_cached(&sql)?;
        let places = statement.parameter_count();
        let mut rows = statement.query(params_from_iter(self.builder.values().iter().take(places)))?;
        Ok(rows.next()?.map(|row| row.get("place")).transpose()?)
    }

    fn ordered(&self, condition: Option<String>, cut: &str) -> String {
        let index = self.entity.order_index;
        if !self.entity.covered || self.required(false).is_none() {
            return self.direct(index, condition, cut);
        }
        let Entity { table, .. } = self.entity;
        let (keys, order) = (self.order.keys(), self.order.sql());
        self.late(&format!(
            "SELECT id AS page_id, {keys} FROM {table} INDEXED BY {index}{} ORDER BY {order} {cut}",
            where_(condition)
        ))
    }

    fn direct(&self, index: &str, condition: Option<String>, cut: &str) -> String {
        let Entity { table, select, .. } = self.entity;
        let (keys, order, condition) = (self.order.keys(), self.order.sql(), where_(condition));
        format!("SELECT {select}, {keys} FROM {table} INDEXED BY {index}{condition} ORDER BY {order} {cut}")
    }

    /// What is sorted holds no more than the sort needs.
    fn any_order(&self, cut: &str) -> String {
        let table = self.entity.table;
        let (keys, order) = (self.order.keys(), self.order.sql());
        let condition = where_(all([self.required(false), self.behind.clone()]));
        self.late(&format!("SELECT id AS page_id, {keys} FROM {table}{condition} ORDER BY {order} {cut}"))
    }

    fn merged(&self, pieces: &Pieces, cut: &str) -> String {
        let Entity { table, select, .. } = self.entity;
        let (keys, index) = (self.order.keys(), pieces.index);
        let selects = self.in_pieces(pieces).map(|condition| {
            format!("SELECT {select}, {keys} FROM {table} INDEXED BY {index} WHERE {condition}")
        });
        let selects = selects.collect::<Vec<_>>().join(" UNION ALL ");
        format!("{selects} ORDER BY {} {cut}", self.order.by_key(""))
    }

    /// Only the rows of the page are read in whole; of the others what they are ordered by.
    fn sorted(&self, pieces: &Pieces, cut: &str, most: &str) -> String {
        let table = self.entity.table;
        let (keys, order, index) = (self.order.keys(), self.order.sql(), pieces.index);
        let select = |condition: String, cut: &str| {
            format!(
                "SELECT id AS page_id, {keys} FROM {table} INDEXED BY {index} WHERE {condition} ORDER BY {order} {cut}"
            )
        };
        let conditions: Vec<String> = self.in_pieces(pieces).collect();
        if let [condition] = conditions.as_slice() {
            return self.late(&select(condition.clone(), cut));
        }
        let selects = conditions
            .into_iter()
            .map(|condition| format!("SELECT * FROM ({})", select(condition, &format!("LIMIT {most}"))));
        let selects = selects.collect::<Vec<_>>().join(" UNION ALL ");
        self.late(&format!("SELECT * FROM ({selects}) AS found ORDER BY {} {cut}", self.order.by_key("")))
    }

    /// The rows whose ids are found by a statement, in its order.
    fn late(&self, ids: &str) -> String {
        let Entity { table, select, .. } = self.entity;
        format!(
            "SELECT {select}, {} FROM ({ids}) AS page CROSS JOIN {table} ON {table}.id = page.page_id ORDER BY {}",
            self.order.key_columns("page."),
            self.order.by_key("page."),
        )
    }

    fn in_pieces(&self, pieces: &Pieces) -> impl Iterator<Item = String> {
        let condition = all([self.required(pieces.by_access), self.behind.clone()]);
        pieces.conditions.clone().into_iter().filter_map(move |piece| all([Some(piece), condition.clone()]))
    }

    fn required(&self, by_access: bool) -> Option<String> {
        all([self.condition.clone(), self.access.clone().filter(|_| !by_access)])
    }

    fn statement(&self, sql: String) -> Statement {
        Statement { sql, values: self.builder.values().to_vec() }
    }
}

/// All these conditions.
fn all(conditions: impl IntoIterator<Item = Option<String>>) -> Option<String> {
    let conditions: Vec<String> = conditions.into_iter().flatten().collect();
    (!conditions.is_empty()).then(|| conditions.join(" AND "))
}

fn where_(condition: Option<String>) -> String {
    condition.map_or_else(String::new, |condition| format!(" WHERE {condition}"))
}

fn is_point(from: &Cut, to: &Cut) -> bool {
    match (from, to) {
        (Cut::At(from, false), Cut::At(to, true)) => from == to,
        (Cut::Start | Cut::At(..) | Cut::End, Cut::Start | Cut::At(..) | Cut::End) => false,
    }
}

/// Adds the names of the properties in a filter.
fn name(filter: &Filter, names: &mut BTreeSet<&'static str>) {
    match filter {
        Filter::And(parts) | Filter::Or(parts) => parts.iter().for_each(|part| name(part, names)),
        Filter::Not(inner) => name(inner, names),
        Filter::Test(Subject::Property(property), _) | Filter::Any(property, _) => {
            names.insert(property.name);
        }
        Filter::Test(Subject::Element, _) => {}
    }
}
