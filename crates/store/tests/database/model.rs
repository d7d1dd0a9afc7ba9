//! What a query means, in the plainest words: every row is looked at, then sorted, then cut. No SQL.

use std::cmp::Ordering;

use domain::machine::{Health, Machine};
use domain::machine_action::{Kind, MachineAction};
use domain::restriction::{Desired, Reported, Tier};
use domain::time::Timestamp;
use odata::{Comparison, Direction, Filter, Property, Query, Subject, Test, TextFunction, Type, Value};

/// A row whose properties have values.
pub(crate) trait Row: Clone {
    /// The list's order when a query has none.
    const ORDER: (&'static str, Direction);

    fn value(&self, property: &str, now: Timestamp) -> Value;

    fn tags(&self) -> &[String];
}

/// The rows that a query without a token asks for, and how many there are without `$top` and `$skip`.
pub(crate) fn answer<R: Row>(
    rows: &[R],
    query: &Query,
    properties: &[Property],
    now: Timestamp,
) -> (Vec<R>, usize) {
    let mut found: Vec<R> = rows.to_vec();
    if let Some(filter) = &query.filter {
        found.retain(|row| holds(filter, row, None, now));
    }
    let mut order: Vec<(&str, Direction)> =
        query.order_by.iter().map(|order| (order.property.name, order.direction)).collect();
    if order.is_empty() {
        order.push(R::ORDER);
    }
    let (_, last) = order[order.len() - 1];
    order.push(("id", last));
    found.sort_by(|a, b| {
        order.iter().fold(Ordering::Equal, |so_far, (name, direction)| {
            let property = properties.iter().find(|property| property.name == *name).unwrap();
            let by_this = compare(&a.value(name, now), &b.value(name, now), property.kind);
            so_far.then(match direction {
                Direction::Ascending => by_this,
                Direction::Descending => by_this.reverse(),
            })
        })
    });
    let count = found.len();
    let top = query.top.unwrap_or(odata::TOP_MAX) as usize;
    (found.into_iter().skip(query.skip.unwrap_or(0) as usize).take(top).collect(), count)
}

/// Null first, names in the order of their type.
fn compare(a: &Value, b: &Value, kind: Type) -> Ordering {
    match (a, b) {
        (Value::Null, Value::Null) => Ordering::Equal,
        (Value::Null, _) => Ordering::Less,
        (_, Value::Null) => Ordering::Greater,
        (Value::Enum(a), Value::Enum(b)) => {
            let Type::Enum(names) = kind else { panic!("{kind:?}") };
            let position = |name| names.iter().position(|known| known == name).unwrap();
            position(a).cmp(&position(b))
        }
        (Value::Guid(a), Value::Guid(b)) => a.cmp(b),
        (Value::Boolean(a), Value::Boolean(b)) => a.cmp(b),
        _ => ordered(a, b).unwrap(),
    }
}

fn ordered(a: &Value, b: &Value) -> Option<Ordering> {
    match (a, b) {
        (Value::String(a), Value::String(b)) => Some(a.chars().cmp(b.chars())),
        (Value::Integer(a), Value::Integer(b)) | (Value::DateTime(a), Value::DateTime(b)) => Some(a.cmp(b)),
        (Value::Null, _) => None,
        _ => panic!("{a:?} against {b:?}"),
    }
}

fn holds<R: Row>(filter: &Filter, row: &R, element: Option<&str>, now: Timestamp) -> bool {
    match filter {
        Filter::And(parts) => parts.iter().all(|part| holds(part, row, element, now)),
        Filter::Or(parts) => parts.iter().any(|part| holds(part, row, element, now)),
        Filter::Not(inner) => !holds(inner, row, element, now),
        Filter::Any(_, None) => !row.tags().is_empty(),
        Filter::Any(_, Some(inner)) => row.tags().iter().any(|tag| holds(inner, row, Some(tag), now)),
        Filter::Test(Subject::Element, test) => {
            passes(test, &Value::String(element.unwrap().to_owned()), str::to_owned)
        }
        Filter::Test(Subject::Property(property), test) => {
            // Machine ids are asked for in either case.
            let case = match (property.name, property.kind) {
                ("id" | "machineId", Type::String) => str::to_lowercase,
                _ => str::to_owned,
            };
            passes(test, &row.value(property.name, now), case)
        }
    }
}

fn passes(test: &Test, value: &Value, case: fn(&str) -> String) -> bool {
    let cased = |literal: &Value| {
        if let Value::String(text) = literal { Value::String(case(text)) } else { literal.clone() }
    };
    match test {
        Test::Compare(Comparison::Equal, literal) => *value == cased(literal),
        Test::Compare(Comparison::NotEqual, literal) => *value != cased(literal),
        Test::Compare(comparison, literal) => {
            let order = ordered(value, &cased(literal));
            order.is_some_and(|order| match comparison {
                Comparison::Greater => order.is_gt(),
                Comparison::GreaterOrEqual => order.is_ge(),
                Comparison::Less => order.is_lt(),
                Comparison::LessOrEqual => order.is_le(),
                Comparison::Equal | Comparison::NotEqual => unreachable!(),
            })
        }
        Test::In(literals) => literals.iter().any(|literal| *value == cased(literal)),
        Test::Text(function, text) => {
            let Value::String(value) = value else { return false };
            let text = &case(text);
            match function {
                TextFunction::StartsWith => value.starts_with(text),
                TextFunction::EndsWith => value.ends_with(text),
                TextFunction::Contains => value.contains(text),
            }
        }
    }
}

fn text(value: &str) -> Value {
    Value::String(value.to_owned())
}

fn text_or_null(value: Option<&str>) -> Value {
    value.map_or(Value::Null, text)
}

fn number(value: u64) -> Value {
    Value::Integer(value.try_into().unwrap())
}

impl Row for Machine {
    const ORDER: (&'static str, Direction) = ("id", Direction::Ascending);

    fn value(&self, property: &str, now: Timestamp) -> Value {
        let restriction = &self.restriction;
        let reported = match restriction.reported {
            Reported::Unknown => "Unknown",
            Reported::Released => "Released",
            Reported::Restricted => "Restricted",
        };
        let first_up = self.system.ip_addresses.iter().find(|ip| ip.up && !ip.address.is_loopback());
        match property {
            "id" => text(&self.id.to_string()),
            "computerDnsName" => text(&self.system.computer_dns_name),
            "version" => text(&self.system.os_version),
            "osPlatform" => text(&self.system.os_platform),
            "lastSeen" => Value::DateTime(self.last_seen.ticks()),
            "lastIpAddress" => text_or_null(first_up.map(|ip| ip.address.to_string()).as_deref()),
            "healthStatus" => Value::Enum(match self.health(now) {
                Health::Active => "Active",
                Health::Inactive => "Inactive",
            }),
            "onboardingStatus" => Value::Enum("onboarded"),
            "rbacGroupId" => Value::Integer(self.group),
            "rbacGroupName" => text(&self.group_name),
            "aadDeviceId" => Value::Null,
            "riskScore" | "exposureLevel" => Value::Enum("None"),
            "deviceValue" => Value::Enum("Normal"),
            "executionRestriction" | "executionRestriction/reported" => Value::Enum(reported),
            "executionRestriction/desired" => Value::Enum(match restriction.desired {
                Desired::Released => "Released",
                Desired::Restricted => "Restricted",
            }),
            "executionRestriction/generation" => number(restriction.desired_generation),
            "executionRestriction/since" => {
                restriction.since.map_or(Value::Null, |since| Value::DateTime(since.ticks()))
            }
            "executionRestriction/policy" => text_or_null(restriction.policy_name.as_deref()),
            "executionRestriction/backend" => text_or_null(restriction.tier.map(Tier::name)),
            "executionRestriction/endsAt" => {
                restriction.ends_at.map_or(Value::Null, |ends_at| Value::DateTime(ends_at.ticks()))
            }
            "executionRestriction/drift" => Value::Boolean(restriction.drifts()),
            other => panic!("no value for {other}"),
        }
    }

    fn tags(&self) -> &[String] {
        &self.tags
    }
}

impl Row for MachineAction {
    const ORDER: (&'static str, Direction) = ("creationDateTimeUtc", Direction::Descending);

    fn value(&self, property: &str, _: Timestamp) -> Value {
        match property {
            "id" => Value::Guid(self.id.0.as_u128()),
            "status" => Value::Enum(self.phase.status().name()),
            "machineId" => text(&self.machine.to_string()),
            "type" => Value::Enum(match self.kind {
                Kind::Restrict => "RestrictCodeExecution",
                Kind::Unrestrict => "UnrestrictCodeExecution",
            }),
            "requestor" => text(&self.requestor),
            "creationDateTimeUtc" => Value::DateTime(self.created_at.ticks()),
            "lastUpdateDateTimeUtc" => Value::DateTime(self.updated_at.ticks()),
            "externalId" => text_or_null(self.external_id.as_deref()),
            other => panic!("no value for {other}"),
        }
    }

    fn tags(&self) -> &[String] {
        &[]
    }
}
