//! The table of the API contract about collections: a test for each row, named after it.

use domain::machine::MachineId;
use domain::machine_action::{Kind, MachineAction, MachineActionId, Phase};
use domain::machine_group::MachineAccess;
use odata::{Query, Schema, TOP_MAX};
use store::list::{MACHINE_ACTIONS, MACHINES, machine_action_list, machine_list};
use store::machine_action::machine_action_create;
use uuid::Uuid;

use crate::fixture::{Database, action, capabilities, enroll, machine_id, remote, second, system};

/// The date on which the machines were seen last.
const SEEN: &str = "2026-01-31T08:14:55Z";
const SEEN_SECONDS: i64 = 1_769_847_295;

/// Three machines, of which the first has connected, is tagged and has a group; and an action of each.
async fn database() -> Database {
    let database = Database::new();
    database
        .write(|tx| {
            for number in 0..3 {
                let id = enroll(tx, number)?;
                if number == 0 {
                    store::machine::machine_connected(
                        tx,
                        id,
                        &system(),
                        &capabilities(),
                        remote(),
                        second(100),
                    )?;
                }
                store::machine::machines_seen(tx, &[(id, second(SEEN_SECONDS + i64::from(number)))])?;
                machine_action_create(tx, &action_of(number, id), "order")?;
            }
            Ok(())
        })
        .await;
    database
        .outside()
        .execute_batch(&format!(
            "INSERT INTO machine_group (id, name, description, rank) VALUES (7, 'O''Brien''s', '', 1);
             UPDATE machine SET machine_group = 7 WHERE id = '{0}';
             INSERT INTO machine_tag (machine, tag) VALUES ('{0}', 'VIP');",
            machine_id(0)
        ))
        .unwrap();
    database
}

fn action_of(number: u32, machine: MachineId) -> MachineAction {
    let created_at = second(SEEN_SECONDS + i64::from(number));
    MachineAction {
        id: MachineActionId(Uuid::from_u128(u128::from(number) + 1)),
        kind: if number == 0 { Kind::Unrestrict } else { Kind::Restrict },
        phase: if number == 0 { Phase::Enforced } else { Phase::Queued },
        requestor: if number == 0 { "alice@example.com".to_owned() } else { "soar".to_owned() },
        external_id: (number == 0).then(|| "INC-1".to_owned()),
        created_at,
        updated_at: created_at,
        ..action(machine, 1)
    }
}

/// The numbers of the rows that a query finds, in its order.
async fn found(database: &Database, schema: &'static Schema, text: &str) -> Vec<u32> {
    let query = odata::parse(text, schema).unwrap_or_else(|error| panic!("{text}: {error}"));
    let numbers = database.read(move |tx| {
        let all = &MachineAccess::All;
        let ids: Vec<MachineId> = if std::ptr::eq(schema, &MACHINES) {
            machine_list(tx, &query, all, second(SEEN_SECONDS))?.rows.iter().map(|row| row.id).collect()
        } else {
            machine_action_list(tx, &query, all)?.rows.iter().map(|row| row.machine).collect()
        };
        Ok(ids.iter().map(|id| (0..3).find(|number| machine_id(*number) == *id).unwrap()).collect())
    });
    numbers.await
}

fn refused(schema: &'static Schema, text: &str) -> odata::Error {
    odata::parse(text, schema).expect_err(text)
}

async fn check(schema: &'static Schema, table: &[(&str, &[u32])]) {
    let database = database().await;
    for (filter, numbers) in table {
        let found = found(&database, schema, &format!("$filter={filter}&$orderby=id")).await;
        assert_eq!(found, *numbers, "{filter}");
    }
}

#[tokio::test]
async fn filter_on_actions() {
    check(
        &MACHINE_ACTIONS,
        &[
            ("id eq 00000000-0000-0000-0000-000000000001", &[0]),
            ("status eq 'Succeeded'", &[0]),
            (&format!("machineId eq '{}'", machine_id(0)), &[0]),
            ("type eq 'UnrestrictCodeExecution'", &[0]),
            ("type eq 'Isolate'", &[]),
            ("requestor eq 'alice@example.com'", &[0]),
            (&format!("creationDateTimeUtc le {SEEN}"), &[0]),
            (&format!("lastUpdateDateTimeUtc le {SEEN}"), &[0]),
            ("externalId eq 'INC-1'", &[0]),
            ("externalId eq null", &[1, 2]),
        ],
    )
    .await;
}

#[tokio::test]
async fn filter_on_machines() {
    check(
        &MACHINES,
        &[
            ("computerDnsName eq 'lab-042'", &[0]),
            (&format!("id eq '{}'", machine_id(0)), &[0]),
            ("version eq 'Debian 12'", &[0]),
            ("deviceValue eq 'Normal'", &[0, 1, 2]),
            ("deviceValue eq 'High'", &[]),
            ("aadDeviceId eq null", &[0, 1, 2]),
            ("machineTags/any(t: t eq 'VIP')", &[0]),
            (&format!("lastSeen le {SEEN}"), &[0]),
            ("exposureLevel eq 'High'", &[]),
            ("onboardingStatus eq 'onboarded'", &[0, 1, 2]),
            ("lastIpAddress eq 'fe80::5'", &[0]),
            ("healthStatus eq 'Active'", &[0, 1, 2]),
            ("healthStatus eq 'Inactive'", &[]),
            ("osPlatform eq 'Linux'", &[0]),
            ("riskScore eq 'None'", &[0, 1, 2]),
            ("rbacGroupId eq 7", &[0]),
            ("rbacGroupName eq 'Ungrouped machines (default)'", &[1, 2]),
            ("executionRestriction/desired eq 'Released'", &[0, 1, 2]),
            ("executionRestriction eq 'Unknown'", &[0, 1, 2]),
            ("executionRestriction/backend eq 'fanotify'", &[0]),
            ("executionRestriction/endsAt ne null", &[]),
        ],
    )
    .await;
}

#[tokio::test]
async fn operators() {
    check(
        &MACHINES,
        &[
            ("computerDnsName eq 'host-1'", &[1]),
            ("computerDnsName ne 'host-1'", &[0, 2]),
            ("computerDnsName gt 'host-1'", &[0, 2]),
            ("computerDnsName ge 'host-1'", &[0, 1, 2]),
            ("computerDnsName lt 'host-2'", &[1]),
            ("computerDnsName le 'host-2'", &[1, 2]),
            ("computerDnsName eq 'host-1' and rbacGroupId eq 0", &[1]),
            ("computerDnsName eq 'host-1' or rbacGroupId eq 7", &[0, 1]),
            ("not (computerDnsName eq 'host-1')", &[0, 2]),
            ("computerDnsName in ('host-1', 'lab-042')", &[0, 1]),
            ("(computerDnsName eq 'host-1' or rbacGroupId eq 7) and rbacGroupId eq 0", &[1]),
            ("startswith(computerDnsName,'host')", &[1, 2]),
            ("endswith(computerDnsName,'42')", &[0]),
            ("contains(computerDnsName,'st-')", &[1, 2]),
            ("machineTags/any(t: t eq 'VIP')", &[0]),
            // Names without regard to case; an enumeration's names too.
            ("COMPUTERDNSNAME EQ 'host-1'", &[1]),
            ("healthstatus eq 'active'", &[0, 1, 2]),
            // Date-times: whole seconds, with fraction, with offset, a date.
            ("lastSeen eq 2026-01-31T08:14:55Z", &[0]),
            ("lastSeen lt 2026-01-31T08:14:55.5Z", &[0]),
            ("lastSeen le 2026-01-31T09:14:55%2B01:00", &[0]),
            ("lastSeen gt 2026-01-31Z", &[0, 1, 2]),
            ("lastSeen lt 2026-01-31Z", &[]),
            // A quote is doubled; a space is %20 or +.
            ("rbacGroupName eq 'O''Brien''s'", &[0]),
            ("rbacGroupName%20eq%20'Ungrouped%20machines%20(default)'", &[1, 2]),
            ("rbacGroupName+eq+'Ungrouped+machines+(default)'", &[1, 2]),
        ],
    )
    .await;
}

#[tokio::test]
async fn top_and_skip() {
    let database = database().await;
    assert_eq!(found(&database, &MACHINES, "$top=2").await.len(), 2);
    assert_eq!(found(&database, &MACHINES, "$top=10000").await.len(), 3);
    assert_eq!(found(&database, &MACHINES, "$skip=1&$orderby=id").await, [1, 2]);
    let error = refused(&MACHINES, "$top=10001");
    assert_eq!((error.option.as_str(), error.position), ("$top", 1));
    assert_eq!(TOP_MAX, 10_000);
}

#[tokio::test]
async fn orderby() {
    let database = database().await;
    // Newest first, and by id.
    assert_eq!(found(&database, &MACHINE_ACTIONS, "").await, [2, 1, 0]);
    assert_eq!(found(&database, &MACHINES, "").await, [0, 1, 2]);
    assert_eq!(found(&database, &MACHINES, "$orderby=lastSeen desc").await, [2, 1, 0]);
    assert_eq!(found(&database, &MACHINES, "$orderby=computerDnsName asc").await, [1, 2, 0]);
    // What ties is told apart by the id.
    assert_eq!(found(&database, &MACHINES, "$orderby=riskScore desc,rbacGroupId").await, [1, 2, 0]);
    for schema in [&MACHINES, &MACHINE_ACTIONS] {
        let sortable = schema.properties.iter().filter(|property| property.kind != odata::Type::Strings);
        for property in sortable {
            for direction in ["asc", "desc"] {
                let found =
                    found(&database, schema, &format!("$orderby={} {direction}", property.name)).await;
                assert_eq!(found.len(), 3, "{}", property.name);
            }
        }
    }
}

#[tokio::test]
async fn select_and_count() {
    let query = odata::parse("$select=ID,machineTags&$count=true&$top=1", &MACHINES).unwrap();
    assert_eq!(query.select.as_deref(), Some(&["id", "machineTags"][..]));
    let now = second(SEEN_SECONDS);
    let page = database().await.read(move |tx| machine_list(tx, &query, &MachineAccess::All, now)).await;
    assert_eq!((page.rows.len(), page.count), (1, Some(3)));
    assert_eq!(refused(&MACHINES, "$select=nothing").option, "$select");
    // What `/$count` asks for.
    let query = Query { top: Some(0), count: true, ..Query::default() };
    let page = database().await.read(move |tx| machine_list(tx, &query, &MachineAccess::All, now)).await;
    assert_eq!((page.rows.len(), page.count, page.next), (0, Some(3), None));
}

#[test]
fn expand() {
    for schema in [&MACHINES, &MACHINE_ACTIONS] {
        assert!(refused(schema, "$expand=machine").to_string().starts_with("\"$expand\", position 1"));
    }
}

#[tokio::test]
async fn paging() {
    // Long lists are in list_page.rs. A `$top` means that no more is wanted.
    let database = database().await;
    let query = odata::parse("$top=1", &MACHINES).unwrap();
    let now = second(SEEN_SECONDS);
    let page = database.read(move |tx| machine_list(tx, &query, &MachineAccess::All, now)).await;
    assert_eq!(page.next, None);
    // The link carries what was understood of the query, and nothing else.
    let query = odata::parse("api-version=1&$filter=id+ne+'a'&$count=true", &MACHINES).unwrap();
    let next = Query { skip_token: Some("place".to_owned()), ..query };
    assert_eq!(next.to_string(), "$filter=id%20ne%20'a'&$count=true&$skiptoken=place");
}

#[test]
fn bad_query() {
    let deep = format!("$filter={}id eq ''", "(".repeat(33));
    let wide = format!("$filter={}", vec!["id eq ''"; 500].join(" or "));
    let long = format!("$filter=id eq '{}'", "x".repeat(8192));
    for (text, option, position) in [
        ("$filter=id eq", "$filter", 6),
        ("$filter=name eq 'x'", "$filter", 1),
        ("$filter=lastSeen gt '2026-01-31Z'", "$filter", 13),
        ("$orderby=id up", "$orderby", 4),
        ("filter=id eq 'x'", "\"filter\"", 1),
        (deep.as_str(), "$filter", 34),
        (wide.as_str(), "$filter", 5997),
        (long.as_str(), "$filter", 1),
    ] {
        let error = refused(&MACHINES, text);
        assert_eq!((error.option.as_str(), error.position), (option, position), "{error}");
        assert!(!error.expected.is_empty());
    }
}
