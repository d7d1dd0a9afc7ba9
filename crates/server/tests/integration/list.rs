//! Lists: query options on the wire, and pages that hold while rows arrive.

use std::collections::BTreeSet;

use domain::machine::MachineId;
use domain::permission::Permission;
use domain::time::Timestamp;
use serde_json::{Value, json};
use store::StoreError;

use crate::harness::client::Client;
use crate::harness::machine::{Behavior, Machine};
use crate::harness::server::TestServer;

fn ids(list: &Value) -> Vec<&str> {
    list["value"].as_array().unwrap().iter().map(|row| row["id"].as_str().unwrap()).collect()
}

/// The names of the machines that a filter selects.
async fn names(client: &Client, filter: &str) -> Vec<String> {
    let query = form_urlencoded::Serializer::new(String::new()).append_pair("$filter", filter).finish();
    let list =
        client.get(&format!("/api/machines?{query}&$orderby=computerDnsName")).await.expect_status(200);
    let rows = list["value"].as_array().unwrap().iter();
    rows.map(|row| row["computerDnsName"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn lists_are_wrapped_as_the_contract_has_it() {
    let server = TestServer::start().await;
    let client = server.client(&[Permission::MachineReadAll]).await;
    for (path, set) in [("/api/machines", "Machines"), ("/api/machineactions", "MachineActions")] {
        let reply = client.get(path).await;
        let context = format!("{}/api/$metadata#{set}", server.url());
        assert_eq!(reply.body, json!({"@odata.context": context, "value": []}));
    }
}

#[tokio::test]
async fn machines_are_filtered_by_what_they_are() {
    let server = TestServer::start().await;
    let client = server.admin();
    let (restricted, _connection) = Machine::online(&server, "lab-1.example").await;
    let _released = Machine::online(&server, "lab-2.example").await;
    Machine::enroll(&server, "office-1").await;
    let action = client.restrict(&restricted.id).await.expect_status(201);
    client.wait_for(&action, "Succeeded").await;
    let upper = restricted.id.to_uppercase();
    for (filter, expected) in [
        ("startswith(computerDnsName,'lab')", &["lab-1.example", "lab-2.example"][..]),
        ("ComputerDNSName eq 'office-1'", &["office-1"]),
        ("osPlatform eq 'Linux' and not contains(computerDnsName,'-2')", &["lab-1.example"]),
        ("executionRestriction eq 'Restricted'", &["lab-1.example"]),
        ("executionRestriction/reported eq 'Unknown'", &["office-1"]),
        ("healthStatus in ('Active')", &["lab-1.example", "lab-2.example", "office-1"]),
        ("riskScore ne 'None'", &[]),
        ("machineTags/any(t: t eq 'x')", &[]),
        ("lastSeen gt 2026-01-31Z", &["lab-1.example", "lab-2.example", "office-1"]),
        ("lastSeen lt 2026-01-31T00:00:00.5+02:00", &[]),
        ("lastIpAddress eq '10.0.0.5'", &["lab-1.example", "lab-2.example"]),
        (&format!("id eq '{upper}'"), &["lab-1.example"]),
    ] {
        assert_eq!(names(&client, filter).await, expected, "{filter}");
    }
}

#[tokio::test]
async fn actions_are_filtered_ordered_counted_and_selected() {
    let server = TestServer::start().await;
    let client = server.admin();
    let connector = server.client(&Permission::ALL).await;
    let (machine, _connection) = Machine::online(&server, "lab-1").await;
    let away = Machine::enroll(&server, "lab-2").await;
    let first = client.restrict(&machine.id).await.expect_status(201);
    client.wait_for(&first, "Succeeded").await;
    let second = connector.unrestrict(&machine.id).await.expect_status(201);
    client.wait_for(&second, "Succeeded").await;
    let third = client.restrict(&away.id).await.expect_status(201);
    let [first, second, third] =
        [first, second, third].map(|action| action["id"].as_str().unwrap().to_owned());

    let created = client.action(&second).await["creationDateTimeUtc"].as_str().unwrap().to_owned();
    for (query, expected) in [
        (String::new(), vec![&third, &second, &first]),
        ("$filter=status eq 'Succeeded'".to_owned(), vec![&second, &first]),
        (
            "$filter=status%20eq%20'Pending'+or+type+eq+'UnrestrictCodeExecution'".to_owned(),
            vec![&third, &second],
        ),
        (format!("$filter=requestor eq '{}'", connector.app), vec![&second]),
        (format!("$filter=machineId eq '{}'", machine.id.to_uppercase()), vec![&second, &first]),
        (format!("$filter=creationDateTimeUtc ge {created}"), vec![&third, &second]),
        (format!("$filter=id in ('{first}','{third}')"), vec![&third, &first]),
        ("$orderby=creationDateTimeUtc asc".to_owned(), vec![&first, &second, &third]),
        ("$top=1".to_owned(), vec![&third]),
        ("$top=1&$skip=1".to_owned(), vec![&second]),
        ("$top=10000&$skip=3".to_owned(), vec![]),
        ("%24filter=status eq 'Cancelled'".to_owned(), vec![]),
    ] {
        let list = client.get(&format!("/api/machineactions?{query}")).await.expect_status(200);
        assert_eq!(ids(&list), expected, "{query}");
        assert!(list.get("@odata.nextLink").is_none() && list.get("@odata.count").is_none());
    }

    let list =
        client.get("/api/machineactions?$count=true&$top=1&$select=id,Status").await.expect_status(200);
    let expected = json!({
        "@odata.context": format!("{}/api/$metadata#MachineActions", server.url()),
        "@odata.count": 3,
        "value": [{"id": third, "status": "Pending"}],
    });
    assert_eq!(list, expected);
    for (query, count) in [("", 3), ("?$filter=status eq 'Succeeded'", 2), ("?$top=1", 3)] {
        let reply = client.get(&format!("/api/machineactions/$count{query}")).await;
        assert_eq!((reply.status, reply.text), (200, count.to_string()), "{query}");
    }
}

#[tokio::test]
async fn a_bad_query_says_what_is_wrong_and_where() {
    let server = TestServer::start().await;
    let client = server.admin();
    for (query, says) in [
        ("$filter=status eq", "$filter, position 10"),
        ("$filter=nothing eq 'x'", "$filter, position 1"),
        ("$filter=status eq 'Nonsense'", "$filter, position 11"),
        ("$filter=creationDateTimeUtc gt 'yesterday'", "$filter, position 24"),
        ("$filter=(((status eq 'Pending')", "$filter"),
        ("$top=10001", "$top"),
        ("$top=-1", "$top"),
        ("$skip=x", "$skip"),
        ("$orderby=title", "$orderby"),
        ("$select=secret", "$select"),
        ("$count=maybe", "$count"),
        ("$expand=machine", "$expand"),
        ("$skiptoken=nonsense", "$skiptoken"),
        ("$top=1&$top=2", "$top"),
    ] {
        for path in ["/api/machineactions", "/api/machineactions/$count"] {
            // A count ignores everything but the filter, once it has been read.
            if path.ends_with("$count") && query.starts_with("$skiptoken") {
                continue;
            }
            let message = client.get(&format!("{path}?{query}")).await.expect_error(400, "ODataError");
            assert!(message.contains(says) && message.contains("expected"), "{query}: {message}");
        }
    }
    let deep = format!("{}status eq 'Pending'{}", "(".repeat(100), ")".repeat(100));
    let long = format!("id in ('{}')", "x".repeat(9000));
    for filter in [deep, long] {
        client.get(&format!("/api/machineactions?$filter={filter}")).await.expect_error(400, "ODataError");
    }
}

/// More machines than one page holds, entered beside the server.
async fn many_machines(server: &TestServer, numbers: std::ops::Range<u32>) {
    let key = orders::SigningKey::generate().unwrap().public_key().to_string();
    let at = Timestamp::from(std::time::SystemTime::now());
    let enter = move |tx: &store::Tx<'_>| {
        numbers.clone().try_for_each(|number| {
            store::machine::machine_enroll(tx, machine_id(number), &key, "filler", at).map(drop)
        })
    };
    server.store().write::<_, StoreError>(enter).await.unwrap();
}

/// Spread over the whole range, so that rows arrive on both sides of any cursor.
fn machine_id(number: u32) -> MachineId {
    let mut id = [0; 20];
    id[..4].copy_from_slice(&number.wrapping_mul(2_654_435_761).to_be_bytes());
    MachineId(id)
}

#[tokio::test]
async fn pages_hold_while_rows_arrive() {
    let server = TestServer::start().await;
    let client = server.admin();
    many_machines(&server, 0..20_500).await;
    let before: BTreeSet<String> = (0..20_500).map(|number| machine_id(number).to_string()).collect();
    let (mut seen, mut pages, mut arrived) = (Vec::new(), 0, 20_500);
    let mut next =
        Some("/api/machines?$filter=computerDnsName eq 'filler'&$select=id&$count=true".to_owned());
    while let Some(path) = next {
        let page = client.get(&path).await.expect_status(200);
        let rows = page["value"].as_array().unwrap();
        assert!(rows.iter().all(|row| row.as_object().unwrap().len() == 1), "$select is carried");
        assert_eq!(page["@odata.count"], arrived, "$count is carried");
        seen.extend(rows.iter().map(|row| row["id"].as_str().unwrap().to_owned()));
        next = page["@odata.nextLink"].as_str().map(str::to_owned);
        pages += 1;
        if let Some(link) = &next {
            assert_eq!(rows.len(), 10_000);
            assert!(link.starts_with(&format!("{}/api/machines?", server.url())), "{link}");
        }
        many_machines(&server, arrived..arrived + 100).await;
        arrived += 100;
    }
    assert_eq!(pages, 3);
    let distinct: BTreeSet<String> = seen.iter().cloned().collect();
    assert_eq!(distinct.len(), seen.len(), "a row came twice");
    assert!(distinct.is_superset(&before), "a row was missed");
}

#[tokio::test]
async fn a_page_with_top_has_no_next_link() {
    let server = TestServer::start().await;
    let client = server.admin();
    for number in 0..3 {
        Machine::enroll(&server, &format!("lab-{number}")).await;
    }
    let list = client.get("/api/machines?$top=2").await.expect_status(200);
    assert_eq!((ids(&list).len(), list.get("@odata.nextLink")), (2, None));
    assert!(ids(&list).is_sorted());
}

#[tokio::test]
async fn an_action_that_ends_stays_where_it_was_listed() {
    let server = TestServer::start().await;
    let client = server.admin();
    let (first, second) = (Machine::enroll(&server, "lab-1").await, Machine::enroll(&server, "lab-2").await);
    let older = client.restrict(&first.id).await.expect_status(201);
    client.restrict(&second.id).await.expect_status(201);
    let before = client.get("/api/machineactions").await.expect_status(200);
    let _connection = first.connect(&server, Behavior::Obey).await;
    client.wait_for(&older, "Succeeded").await;
    let after = client.get("/api/machineactions").await.expect_status(200);
    assert_eq!(ids(&before), ids(&after));
}
