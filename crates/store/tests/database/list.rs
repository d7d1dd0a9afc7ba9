//! Lists against the model: random rows, random queries, the same answer.

use std::collections::HashMap;
use std::net::IpAddr;

use api_types::date_time::DateTimeUtc;
use domain::machine::{Capabilities, IpAddress, Machine, System};
use domain::machine_action::{Kind, MachineAction, MachineActionId, Phase};
use domain::machine_group::MachineAccess;
use domain::restriction::{Desired, Reported, Tier};
use domain::time::Timestamp;
use odata::{
    Comparison, Direction, Filter, OrderBy, Property, Query, Schema, Subject, Test, TextFunction, Type, Value,
};
use proptest::prelude::*;
use store::StoreError;
use store::list::{MACHINE_ACTIONS, MACHINES, machine_action_list, machine_list};
use store::machine::{
    machine_connected, machine_desire, machine_enroll, machine_fetch, machine_reported, machines_seen,
};
use store::machine_action::machine_action_create;
use uuid::Uuid;

use crate::fixture::{Database, action, enroll, machine_id, remote, second};
use crate::model;

/// The time of the queries: the boundary of health, a week before it, is among the times of the rows.
const NOW: i64 = 7 * 24 * 3600 + 105;
/// Texts that mean something to a pattern, to SQL, or to a sort order.
const TEXTS: &[&str] = &[
    "",
    "a",
    "A",
    "ab",
    "b",
    "a'b",
    "''",
    "%",
    "_",
    "a%b",
    "a_b",
    "\\",
    "ü",
    "üb",
    "日本",
    "10.0.0.4",
    "lab-042",
    "z",
    "z\u{10ffff}",
    "\u{10ffff}",
    "'; DROP TABLE machine; --",
    "$1",
    "?1",
    ":id",
    "{inactive_since}",
    "fanotify",
    "default",
];
const MACHINE_COUNT: u32 = 12;
/// The groups of the ungrouped and three more, the last of which is named like a pattern.
const GROUP_COUNT: i64 = 4;
const GROUP_NAMES: [&str; 3] = ["a", "z", "a%b"];

/// Makes the groups, and puts a machine into each group that is given for it.
fn put_into_groups(database: &Database, groups: &[i64]) {
    let outside = database.outside();
    for (id, name) in (1..).zip(GROUP_NAMES) {
        let insert = "INSERT INTO machine_group (id, name, description, rank) VALUES (?1, ?2, '', ?1)";
        outside.execute(insert, (id, name)).unwrap();
    }
    for (number, group) in (0..).zip(groups) {
        let place = "UPDATE machine SET machine_group = ?1 WHERE id = ?2";
        outside.execute(place, (group, machine_id(number).to_string())).unwrap();
    }
}

/// All machines, or those of some groups, of which one may not be there.
fn any_access() -> impl Strategy<Value = MachineAccess> {
    let groups = proptest::sample::subsequence(vec![0, 1, 2, 3, 99], 0..5);
    prop_oneof![Just(MachineAccess::All), groups.prop_map(MachineAccess::Groups)]
}

fn any_text() -> impl Strategy<Value = String> {
    proptest::sample::select(TEXTS).prop_map(str::to_owned)
}

fn any_time() -> impl Strategy<Value = Timestamp> {
    // Few, so that rows tie; some a tick apart.
    (100..110_i64, 0..2_i64)
        .prop_map(|(seconds, ticks)| Timestamp::from_ticks(second(seconds).ticks() + ticks))
}

fn action_id(number: usize) -> Uuid {
    // Spread, so that ids and times are in different orders.
    Uuid::from_u128((number as u128 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835))
}

#[derive(Debug, Clone)]
struct MachineSeed {
    system: System,
    tier: Option<Tier>,
    connected: bool,
    last_seen: Timestamp,
    desired: Vec<Desired>,
    policy: Option<String>,
    reported: Option<(Reported, u64, Timestamp)>,
    tags: Vec<String>,
    group: i64,
    ends_at: Option<Timestamp>,
}

fn any_machine() -> impl Strategy<Value = MachineSeed> {
    let addresses = proptest::sample::select(&["10.0.0.4", "127.0.0.1", "fe80::5"][..]);
    let addresses = addresses.prop_map(|address| address.parse::<IpAddr>().unwrap());
    let address = (addresses, any::<bool>()).prop_map(|(address, up)| IpAddress { address, mac: None, up });
    let system = (any_text(), any_text(), any_text(), proptest::collection::vec(address, 0..3)).prop_map(
        |(computer_dns_name, os_version, os_platform, ip_addresses)| System {
            computer_dns_name,
            os_version,
            os_platform,
            ip_addresses,
            ..System::default()
        },
    );
    let tier = proptest::option::of(Just(Tier::Fanotify));
    let desired =
        proptest::collection::vec(prop_oneof![Just(Desired::Released), Just(Desired::Restricted)], 0..3);
    let reported = prop_oneof![Just(Reported::Released), Just(Reported::Restricted)];
    let reported = proptest::option::of((reported, 0..4_u64, any_time()));
    let tags = proptest::sample::subsequence(TEXTS.to_vec(), 0..3)
        .prop_map(|tags| tags.into_iter().map(str::to_owned).collect());
    let policy = proptest::option::of(any_text());
    let placed = (0..GROUP_COUNT, proptest::option::of(any_time()));
    (system, tier, any::<bool>(), any_time(), desired, policy, reported, tags, placed).prop_map(
        |(system, tier, connected, last_seen, desired, policy, reported, tags, (group, ends_at))| {
            MachineSeed {
                system,
                tier,
                connected,
                last_seen,
                desired,
                policy,
                reported,
                tags,
                group,
                ends_at,
            }
        },
    )
}

/// Puts the machines into the store; as they are there.
async fn put_machines(database: &Database, seeds: Vec<MachineSeed>) -> Vec<Machine> {
    let outside = database.outside();
    let tags: Vec<_> = seeds.iter().map(|seed| seed.tags.clone()).collect();
    let groups: Vec<_> = seeds.iter().map(|seed| seed.group).collect();
    let ends: Vec<_> = seeds.iter().map(|seed| seed.ends_at).collect();
    let count = u32::try_from(seeds.len()).unwrap();
    database
        .write(move |tx| {
            for (number, seed) in (0..).zip(seeds) {
                let id = machine_id(number);
                machine_enroll(tx, id, "key", &seed.system.computer_dns_name, second(90))?;
                if seed.connected {
                    let capabilities = Capabilities { tier: seed.tier, missing: None };
                    machine_connected(tx, id, &seed.system, &capabilities, remote(), second(91))?;
                }
                for desired in seed.desired {
                    let digest = domain::digest::Sha256Digest([1; 32]);
                    machine_desire(tx, id, desired, seed.policy.as_deref().map(|name| (name, digest)), None)?;
                }
                if let Some((reported, generation, at)) = seed.reported {
                    machine_reported(tx, id, reported, generation, at)?;
                }
                machines_seen(tx, &[(id, seed.last_seen)])?;
            }
            Ok(())
        })
        .await;
    put_into_groups(database, &groups);
    for (number, ends_at) in (0..).zip(ends) {
        let update = "UPDATE machine SET ends_at = ?1 WHERE id = ?2";
        outside.execute(update, (ends_at.map(Timestamp::ticks), machine_id(number).to_string())).unwrap();
    }
    for (number, tags) in (0..).zip(tags) {
        // A tag is one line of text that is not empty.
        for tag in tags.iter().filter(|tag| !tag.is_empty()) {
            let values = [machine_id(number).to_string(), tag.clone()];
            outside.execute("INSERT INTO machine_tag (machine, tag) VALUES (?1, ?2)", values).unwrap();
        }
    }
    database
        .read(move |tx| {
            (0..count).map(|number| Ok(machine_fetch(tx, machine_id(number))?.unwrap())).collect()
        })
        .await
}

fn any_actions() -> impl Strategy<Value = Vec<MachineAction>> {
    let one = (
        0..MACHINE_COUNT,
        proptest::sample::select(Phase::ALL.to_vec()),
        prop_oneof![Just(Kind::Restrict), Just(Kind::Unrestrict)],
        any_text(),
        proptest::option::of(any_text()),
        any_time(),
        any_time(),
    );
    proptest::collection::vec(one, 0..40).prop_map(|seeds| {
        let mut open = std::collections::HashSet::new();
        let actions = seeds.into_iter().enumerate().map(
            |(number, (machine, phase, kind, requestor, external_id, created_at, updated_at))| {
                // A machine has one open action.
                let phase = if phase.is_final() || open.insert(machine) { phase } else { Phase::Enforced };
                MachineAction {
                    id: MachineActionId(action_id(number)),
                    phase,
                    kind,
                    requestor,
                    external_id,
                    created_at,
                    updated_at: updated_at.max(created_at),
                    ..action(machine_id(machine), number as u64 + 1)
                }
            },
        );
        actions.collect()
    })
}

/// Values that occur, nearly occur, or do not.
fn any_value(property: &'static Property) -> BoxedStrategy<Value> {
    match (property.name, property.kind) {
        ("id" | "machineId", Type::String) => (0..MACHINE_COUNT, 0..=40_usize, any::<bool>())
            .prop_map(|(number, length, upper)| {
                let id = machine_id(number).to_string();
                let id = if length < 30 { id } else { id.chars().take(length).collect() };
                Value::String(if upper { id.to_uppercase() } else { id })
            })
            .boxed(),
        (_, Type::String | Type::Strings) => any_text().prop_map(Value::String).boxed(),
        (_, Type::Integer) => (-1..4_i64).prop_map(Value::Integer).boxed(),
        (_, Type::Boolean) => any::<bool>().prop_map(Value::Boolean).boxed(),
        (_, Type::DateTime) => any_time().prop_map(|time| Value::DateTime(time.ticks())).boxed(),
        (_, Type::Guid) => (0..40_usize).prop_map(|number| Value::Guid(action_id(number).as_u128())).boxed(),
        (_, Type::Enum(names)) => proptest::sample::select(names).prop_map(Value::Enum).boxed(),
    }
}

fn any_test(property: &'static Property) -> BoxedStrategy<Test> {
    let or_null = prop_oneof![8 => any_value(property), 1 => Just(Value::Null)];
    let mut tests = vec![
        (or_null.clone(), 0..2_usize)
            .prop_map(|(value, index)| Test::Compare(Comparison::ALL[index], value))
            .boxed(),
        proptest::collection::vec(or_null, 1..4).prop_map(Test::In).boxed(),
    ];
    if matches!(property.kind, Type::String | Type::Strings | Type::Integer | Type::DateTime) {
        let order = (any_value(property), 2..6_usize);
        tests.push(order.prop_map(|(value, index)| Test::Compare(Comparison::ALL[index], value)).boxed());
    }
    if matches!(property.kind, Type::String | Type::Strings) {
        let text = (any_value(property), 0..3_usize);
        let text = text.prop_map(|(value, index)| {
            let Value::String(text) = value else { panic!("{value:?}") };
            Test::Text(TextFunction::ALL[index], text)
        });
        tests.extend([text.clone().boxed(), text.boxed()]);
    }
    proptest::strategy::Union::new(tests).boxed()
}

fn tree(leaf: BoxedStrategy<Filter>) -> BoxedStrategy<Filter> {
    leaf.prop_recursive(3, 10, 3, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 2..4).prop_map(Filter::And),
            proptest::collection::vec(inner.clone(), 2..4).prop_map(Filter::Or),
            inner.prop_map(|inner| Filter::Not(Box::new(inner))),
        ]
    })
    .boxed()
}

fn any_filter(schema: &'static Schema) -> BoxedStrategy<Filter> {
    let properties: Vec<&'static Property> = schema.properties.iter().collect();
    let leaf = proptest::sample::select(properties).prop_flat_map(|property| {
        if property.kind == Type::Strings {
            let inner =
                tree(any_test(property).prop_map(|test| Filter::Test(Subject::Element, test)).boxed());
            proptest::option::of(inner).prop_map(|inner| Filter::Any(property, inner.map(Box::new))).boxed()
        } else {
            any_test(property).prop_map(|test| Filter::Test(Subject::Property(property), test)).boxed()
        }
    });
    tree(leaf.boxed())
}

fn any_query(schema: &'static Schema) -> impl Strategy<Value = Query> {
    let sortable: Vec<&'static Property> =
        schema.properties.iter().filter(|property| property.kind != Type::Strings).collect();
    let order_by = proptest::sample::subsequence(sortable, 0..4).prop_shuffle().prop_flat_map(|properties| {
        proptest::collection::vec(any::<bool>(), properties.len()).prop_map(move |ascending| {
            let terms = properties.iter().zip(ascending);
            terms
                .map(|(property, ascending)| OrderBy {
                    property,
                    direction: if ascending { Direction::Ascending } else { Direction::Descending },
                })
                .collect()
        })
    });
    let (top, skip) = (proptest::option::of(0..20_u32), proptest::option::of(0..10_u32));
    (proptest::option::weighted(0.9, any_filter(schema)), order_by, top, skip, any::<bool>()).prop_map(
        |(filter, order_by, top, skip, count)| Query {
            filter,
            order_by,
            top,
            skip,
            count,
            ..Query::default()
        },
    )
}

/// The query as it arrives.
fn arrived(query: &Query, schema: &'static Schema) -> Query {
    odata::parse(&query.to_string(), schema).unwrap()
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn machines_are_listed_as_the_model_lists_them(
        seeds in proptest::collection::vec(any_machine(), 0..MACHINE_COUNT as usize),
        queries in proptest::collection::vec((any_query(&MACHINES), any_access()), 40),
    ) {
        block_on(async {
            let database = Database::new();
            let machines = put_machines(&database, seeds).await;
            for (query, access) in queries {
                let now = second(NOW);
                let mut seen = machines.clone();
                seen.retain(|machine| access.admits(machine.group));
                let (rows, count) = model::answer(&seen, &query, MACHINES.properties, now);
                let query = arrived(&query, &MACHINES);
                let asked = query.clone();
                let page = database.read(move |tx| machine_list(tx, &query, &access, now)).await;
                assert_eq!(page.rows, rows, "{asked}");
                assert_eq!(page.count, asked.count.then_some(count as u64), "{asked}");
                assert_eq!(page.next, None);
            }
        });
    }

    #[test]
    fn machine_actions_are_listed_as_the_model_lists_them(
        actions in any_actions(),
        groups in proptest::collection::vec(0..GROUP_COUNT, MACHINE_COUNT as usize),
        queries in proptest::collection::vec((any_query(&MACHINE_ACTIONS), any_access()), 40),
    ) {
        block_on(async {
            let database = Database::new();
            let created = actions.clone();
            database.write(move |tx| {
                for number in 0..MACHINE_COUNT {
                    enroll(tx, number)?;
                }
                created.iter().try_for_each(|action| machine_action_create(tx, action, "order"))
            }).await;
            put_into_groups(&database, &groups);
            let group_of: HashMap<_, _> = (0..).map(machine_id).zip(groups).collect();
            for (query, access) in queries {
                let mut seen = actions.clone();
                seen.retain(|action| access.admits(group_of[&action.machine]));
                let (rows, count) = model::answer(&seen, &query, MACHINE_ACTIONS.properties, second(0));
                let query = arrived(&query, &MACHINE_ACTIONS);
                let asked = query.clone();
                let page = database.read(move |tx| machine_action_list(tx, &query, &access)).await;
                assert_eq!(page.rows, rows, "{asked}");
                assert_eq!(page.count, asked.count.then_some(count as u64), "{asked}");
                assert_eq!(page.next, None);
            }
        });
    }
}

/// A value as the API writes it.
fn json(value: &Value) -> serde_json::Value {
    match value {
        Value::Null => serde_json::Value::Null,
        Value::String(text) => text.as_str().into(),
        Value::Integer(number) => (*number).into(),
        Value::Boolean(value) => (*value).into(),
        Value::DateTime(ticks) => DateTimeUtc(Timestamp::from_ticks(*ticks)).to_string().into(),
        Value::Guid(bits) => Uuid::from_u128(*bits).to_string().into(),
        Value::Enum(name) => (*name).into(),
    }
}

/// What a query sees of a row is what the API shows of it.
fn check_shown(row: &impl model::Row, shown: &serde_json::Value, schema: &'static Schema) {
    let mut fields: Vec<_> = shown.as_object().unwrap().keys().map(String::as_str).collect();
    let mut selectable = schema.fields.to_vec();
    fields.sort_unstable();
    selectable.sort_unstable();
    assert_eq!(fields, selectable);
    for property in schema.properties {
        let field = shown.pointer(&format!("/{}", property.name)).unwrap();
        // A collection is compared element by element, and the bare name of an object stands for one of its fields.
        if property.kind != Type::Strings && !field.is_object() {
            assert_eq!(*field, json(&row.value(property.name, second(NOW))), "{}", property.name);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn queries_see_what_the_api_shows(
        seeds in proptest::collection::vec(any_machine(), 1..MACHINE_COUNT as usize),
        actions in any_actions(),
    ) {
        block_on(async {
            for machine in put_machines(&Database::new(), seeds).await {
                let shown = api_types::machine::Machine::at(machine.clone(), second(NOW));
                check_shown(&machine, &serde_json::to_value(shown).unwrap(), &MACHINES);
            }
        });
        for action in actions {
            let shown = api_types::machine_action::MachineAction::from(action.clone());
            check_shown(&action, &serde_json::to_value(shown).unwrap(), &MACHINE_ACTIONS);
        }
    }
}

#[tokio::test]
async fn every_property_can_be_tested_and_sorted_by() {
    let database = Database::new();
    database.write(|tx| enroll(tx, 1)).await;
    for schema in [&MACHINES, &MACHINE_ACTIONS] {
        for property in schema.properties {
            let mut texts = vec![
                format!("$filter={}+eq+null", property.name),
                format!("$orderby={}+desc", property.name),
            ];
            if property.kind == Type::Strings {
                texts = vec![format!("$filter={}/any()", property.name)];
            }
            for text in texts {
                let query = odata::parse(&text, schema).unwrap();
                let listed = database.store.read::<_, StoreError>(move |tx| {
                    if std::ptr::eq(schema, &MACHINES) {
                        machine_list(tx, &query, &MachineAccess::All, second(NOW)).map(|page| page.rows.len())
                    } else {
                        machine_action_list(tx, &query, &MachineAccess::All).map(|page| page.rows.len())
                    }
                });
                listed.await.unwrap_or_else(|error| panic!("{text}: {error:?}"));
            }
        }
    }
}

#[tokio::test]
async fn the_largest_filters_are_answered() {
    let database = Database::new();
    database.write(|tx| enroll(tx, 1)).await;
    let chain = |test: &str, operator: &str, tests: usize| vec![test; tests].join(operator);
    let tests = odata::FILTER_NODES_MAX - 1;
    let depth = odata::FILTER_DEPTH_MAX;
    for filter in [
        chain("rbacGroupId eq 0", " or ", 400),
        chain("rbacGroupId ge 0", " and ", 390),
        chain("id ne ''", " and ", tests),
        format!("rbacGroupId in ({})", chain("0", ",", tests)),
        format!("{}rbacGroupId eq 0{}", "not (not (".repeat(depth / 4), "))".repeat(depth / 4)),
        format!(
            "{}rbacGroupId eq 0{}",
            "(id ne '' and (id eq '' or ".repeat(depth / 2),
            "))".repeat(depth / 2)
        ),
        format!("not machineTags/any(t: {})", chain("t eq 'x'", " or ", 400)),
        chain("not machineTags/any()", " and ", tests / 2),
    ] {
        let query = odata::parse(&format!("$count=true&$filter={filter}"), &MACHINES)
            .unwrap_or_else(|error| panic!("{error}"));
        let page = database
            .store
            .read::<_, StoreError>(move |tx| machine_list(tx, &query, &MachineAccess::All, second(NOW)))
            .await;
        let page = page.unwrap_or_else(|error| panic!("{error:?}: {filter}"));
        assert_eq!((page.rows.len(), page.count), (1, Some(1)), "{filter}");
    }
}

#[tokio::test]
async fn a_query_of_another_entity_is_refused() {
    let database = Database::new();
    let query = odata::parse("$filter=machineId eq 'a'", &MACHINE_ACTIONS).unwrap();
    let refused = database
        .store
        .read::<_, StoreError>(move |tx| machine_list(tx, &query, &MachineAccess::All, second(NOW)))
        .await;
    assert!(matches!(refused, Err(StoreError::Unsupported(_))), "{refused:?}");
}
