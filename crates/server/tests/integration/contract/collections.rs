//! Section 3: collections, OData, and machines.

use domain::machine::MachineId;
use domain::permission::Permission;
use domain::time::Timestamp;
use serde_json::{Value, json};
use store::StoreError;

use super::{NOWHERE, Place, id, ids, is_time};
use crate::harness::machine::Machine;

/// The ids of the rows that a filter selects.
async fn filtered(place: &Place, set: &str, filter: &str) -> Vec<String> {
    let query = form_urlencoded::Serializer::new(String::new()).append_pair("$filter", filter).finish();
    ids(&place.client, &format!("/api/{set}?{query}")).await
}

/// The rows that each filter selects: all, or none.
async fn check(place: &Place, set: &str, filters: &[(&str, bool)]) {
    let all = ids(&place.client, &format!("/api/{set}")).await;
    assert!(!all.is_empty());
    for (filter, selects) in filters {
        let expected = if *selects { all.clone() } else { Vec::new() };
        assert_eq!(filtered(place, set, filter).await, expected, "{filter}");
    }
}

/// Machines that are entered beside the server.
async fn enter(place: &Place, numbers: std::ops::Range<u32>) {
    let key = orders::SigningKey::generate().unwrap().public_key().to_string();
    let at = Timestamp::from(std::time::SystemTime::now());
    let enter = move |tx: &store::Tx<'_>| {
        numbers.clone().try_for_each(|number| {
            let mut id = [0; 20];
            // Spread, so that rows arrive on both sides of any page's end.
            id[..4].copy_from_slice(&number.wrapping_mul(2_654_435_761).to_be_bytes());
            store::machine::machine_enroll(tx, MachineId(id), &key, "filler", at).map(drop)
        })
    };
    place.server.store().write::<_, StoreError>(enter).await.unwrap();
}

#[tokio::test]
async fn s3_lists() {
    let place = Place::start().await;
    place.restricted().await;
    for (path, set) in [("/api/machines", "Machines"), ("/api/machineactions", "MachineActions")] {
        let list = place.client.get(path).await.expect_status(200);
        assert_eq!(list.as_object().unwrap().keys().collect::<Vec<_>>(), ["@odata.context", "value"]);
        assert_eq!(list["@odata.context"], format!("{}/api/$metadata#{set}", place.server.url()));
        assert_eq!(list["value"].as_array().unwrap().len(), 1);
    }
}

#[tokio::test]
async fn s3_filter_on_actions() {
    let place = Place::start().await;
    let body = json!({"Comment": "x", "ExternalId": "IR-1"});
    let action = place.client.post(&place.path("/restrictCodeExecution"), &body).await.expect_status(201);
    let (created, machine) = (action["creationDateTimeUtc"].as_str().unwrap(), &place.machine.id);
    for (filter, selects) in [
        (format!("id eq '{}'", id(&action)), true),
        (format!("id eq {}", id(&action)), true),
        ("id eq '00000000-0000-0000-0000-000000000000'".to_owned(), false),
        ("status eq 'Pending'".to_owned(), true),
        ("status ne 'Pending'".to_owned(), false),
        (format!("machineId eq '{machine}'"), true),
        (format!("machineId eq '{}'", machine.to_uppercase()), true),
        (format!("machineId eq '{NOWHERE}'"), false),
        ("type eq 'RestrictCodeExecution'".to_owned(), true),
        ("type eq 'UnrestrictCodeExecution'".to_owned(), false),
        (format!("requestor eq '{}'", place.client.app), true),
        ("requestor eq 'ann@lab.example'".to_owned(), false),
        (format!("creationDateTimeUtc ge {created}"), true),
        (format!("creationDateTimeUtc gt {created}"), false),
        (format!("lastUpdateDateTimeUtc eq {created}"), true),
        ("externalId eq 'IR-1'".to_owned(), true),
        ("externalId eq null".to_owned(), false),
    ] {
        check(&place, "machineactions", &[(&filter, selects)]).await;
    }
}

#[tokio::test]
async fn s3_filter_on_machines() {
    let place = Place::start().await;
    let _connection = place.online().await;
    let tag = json!({"Value": "finance", "Action": "Add"});
    place.client.post(&place.path("/tags"), &tag).await.expect_status(200);
    let by_id = format!("id eq '{}'", place.machine.id);
    check(
        &place,
        "machines",
        &[
            ("computerDnsName eq 'lab-042'", true),
            (&by_id, true),
            ("version eq 'Debian 12'", true),
            ("deviceValue eq 'Normal'", true),
            ("deviceValue eq 'High'", false),
            ("aadDeviceId eq null", true),
            ("aadDeviceId eq '00000000-0000-0000-0000-000000000000'", false),
            ("machineTags/any(t: t eq 'finance')", true),
            ("machineTags/any(t: t eq 'Finances')", false),
            ("lastSeen gt 2026-01-31Z", true),
            ("exposureLevel eq 'None'", true),
            ("onboardingStatus eq 'onboarded'", true),
            ("lastIpAddress eq '10.0.0.5'", true),
            ("healthStatus eq 'Active'", true),
            ("healthStatus eq 'NoSensorDataImpairedCommunication'", false),
            ("osPlatform eq 'Linux'", true),
            ("riskScore eq 'High'", false),
            ("rbacGroupId eq 0", true),
            ("rbacGroupName eq 'Ungrouped machines (default)'", true),
            ("executionRestriction eq 'Released'", true),
            ("executionRestriction/desired eq 'Restricted'", false),
        ],
    )
    .await;
}

#[tokio::test]
async fn s3_operators() {
    let place = Place::start().await;
    let tag = json!({"Value": "it's", "Action": "Add"});
    place.client.post(&place.path("/tags"), &tag).await.expect_status(200);
    check(
        &place,
        "machines",
        &[
            ("computerDnsName eq 'lab-042'", true),
            ("computerDnsName ne 'lab-042'", false),
            ("computerDnsName gt 'lab-041'", true),
            ("computerDnsName ge 'lab-042'", true),
            ("computerDnsName lt 'lab-042'", false),
            ("computerDnsName le 'lab-042'", true),
            ("rbacGroupId eq 0 and osPlatform eq 'none'", false),
            ("rbacGroupId eq 0 or osPlatform eq 'none'", true),
            ("not (rbacGroupId eq 0)", false),
            ("computerDnsName in ('x', 'lab-042')", true),
            ("startswith(computerDnsName,'lab')", true),
            ("endswith(computerDnsName, '043')", false),
            ("contains(computerDnsName,'b-0')", true),
            ("machineTags/any(t: t eq 'it''s')", true),
            ("COMPUTERDNSNAME eq 'lab-042' and HealthStatus eq 'Active'", true),
            ("lastSeen gt 2026-01-31T00:00:00Z", true),
            ("lastSeen gt 2026-01-31T00:00:00.1234567Z", true),
            ("lastSeen lt 2026-01-31T00:00:00+02:00", false),
            ("lastSeen gt 2026-01-31Z", true),
        ],
    )
    .await;
    for spaces in ["computerDnsName%20eq%20'lab-042'", "computerDnsName+eq+'lab-042'"] {
        assert_eq!(ids(&place.client, &format!("/api/machines?$filter={spaces}")).await.len(), 1);
    }
}

#[tokio::test]
async fn s3_top_and_skip() {
    let place = Place::start().await;
    for name in ["lab-1", "lab-2"] {
        Machine::enroll(&place.server, name).await;
    }
    let all = ids(&place.client, "/api/machines").await;
    assert_eq!(ids(&place.client, "/api/machines?$top=2").await, all[..2]);
    assert_eq!(ids(&place.client, "/api/machines?$top=10000&$skip=1").await, all[1..]);
    assert_eq!(ids(&place.client, "/api/machines?$skip=2").await, all[2..]);
    let message = place.client.get("/api/machines?$top=10001").await.expect_error(400, "ODataError");
    assert!(message.contains("10000"), "{message}");
}

#[tokio::test]
async fn s3_orderby() {
    let place = Place::start().await;
    let other = Machine::enroll(&place.server, "office-1").await;
    let [first, second] =
        [place.restricted().await, place.client.restrict(&other.id).await.expect_status(201)];
    let newest_first = [id(&second).to_owned(), id(&first).to_owned()];
    assert_eq!(ids(&place.client, "/api/machineactions").await, newest_first);
    for property in [
        "id",
        "status",
        "machineId",
        "type",
        "requestor",
        "creationDateTimeUtc",
        "lastUpdateDateTimeUtc",
        "externalId",
    ] {
        for direction in ["", " asc", " desc"] {
            let path = format!("/api/machineactions?$orderby={property}{direction}");
            assert_eq!(ids(&place.client, &path).await.len(), 2, "{path}");
        }
    }
    let by_time = ids(&place.client, "/api/machineactions?$orderby=creationDateTimeUtc asc").await;
    assert!(by_time.iter().rev().eq(&newest_first));
    let machines = ids(&place.client, "/api/machines").await;
    assert!(machines.is_sorted());
    // The same in everything that is asked for: the id decides.
    assert_eq!(ids(&place.client, "/api/machines?$orderby=osPlatform,rbacGroupId").await, machines);
    let by_name = ids(&place.client, "/api/machines?$orderby=computerDnsName desc").await;
    assert_eq!(by_name, [other.id, place.machine.id]);
}

#[tokio::test]
async fn s3_select_and_count() {
    let place = Place::start().await;
    let action = place.restricted().await;
    let list = place.client.get("/api/machineactions?$select=id,STATUS&$count=true").await.expect_status(200);
    assert_eq!(list["value"], json!([{"id": id(&action), "status": "Pending"}]));
    assert_eq!(list["@odata.count"], 1);
    for (path, count) in [
        ("/api/machineactions/$count", "1"),
        ("/api/machines/$count", "1"),
        ("/api/machineactions/$count?$filter=status eq 'Failed'", "0"),
    ] {
        let reply = place.client.get(path).await;
        assert_eq!((reply.status, reply.text.as_str()), (200, count), "{path}");
    }
}

#[tokio::test]
async fn s3_expand() {
    let place = Place::start().await;
    for path in ["/api/machines", "/api/machineactions", "/api/machines/$count"] {
        let message = place.client.get(&format!("{path}?$expand=x")).await.expect_error(400, "ODataError");
        assert!(message.contains("$expand"), "{message}");
    }
}

#[tokio::test]
async fn s3_paging() {
    let place = Place::start().await;
    enter(&place, 0..10_500).await;
    let query = "$filter=computerDnsName eq 'filler'&$select=id&$count=true";
    let first = place.client.get(&format!("/api/machines?{query}")).await.expect_status(200);
    let link = first["@odata.nextLink"].as_str().unwrap();
    assert!(link.starts_with(&format!("{}/api/machines?", place.server.url())), "{link}");
    assert_eq!((first["value"].as_array().unwrap().len(), &first["@odata.count"]), (10_000, &json!(10_500)));
    enter(&place, 10_500..10_600).await;
    let second = place.client.get(link).await.expect_status(200);
    assert!(second.get("@odata.nextLink").is_none() && second.get("@odata.count").is_some());
    let mut seen: Vec<&str> = Vec::new();
    for page in [&first, &second] {
        let rows = page["value"].as_array().unwrap();
        assert!(rows.iter().all(|row| row.as_object().unwrap().len() == 1), "$select is carried");
        seen.extend(rows.iter().map(id));
    }
    assert!(seen.len() >= 10_500 && seen.is_sorted_by(|a, b| a < b), "a row came twice, or was missed");
    let top = place.client.get(&format!("/api/machines?{query}&$top=5")).await.expect_status(200);
    assert!(top.get("@odata.nextLink").is_none());
}

#[tokio::test]
async fn s3_bad_query() {
    let place = Place::start().await;
    for (query, says) in [
        ("$filter=status eq", "$filter, position 10"),
        ("$filter=nothing eq 'x'", "$filter, position 1"),
        ("$top=x", "$top, position 1"),
        ("$orderby=title", "$orderby, position 1"),
        ("$select=secret", "$select, position 1"),
        ("$colour=red", "$colour"),
        ("filter=status eq 'Pending'", "$filter"),
    ] {
        let reply = place.client.get(&format!("/api/machineactions?{query}")).await;
        let message = reply.expect_error(400, "ODataError");
        assert!(message.contains(says) && message.contains("expected"), "{query}: {message}");
    }
    let deep = format!("{}status eq 'Pending'{}", "(".repeat(200), ")".repeat(200));
    let long = format!("requestor eq '{}'", "x".repeat(9000));
    let many = vec!["id eq 'a'"; 600].join(" or ");
    for (set, filter) in [("machineactions", deep), ("machineactions", long), ("machines", many)] {
        let reply = place.client.get(&format!("/api/{set}?$filter={filter}")).await;
        reply.expect_error(400, "ODataError");
    }
}

#[tokio::test]
async fn s3_machine() {
    let place = Place::start().await;
    for target in [place.machine.id.as_str(), "lab-042"] {
        let machine = place.client.machine(target).await;
        assert_eq!(
            machine["@odata.context"],
            format!("{}/api/$metadata#Machines/$entity", place.server.url())
        );
        assert_eq!(machine["id"], place.machine.id);
    }
    let message =
        place.client.get(&format!("/api/machines/{NOWHERE}")).await.expect_error(404, "ResourceNotFound");
    assert_eq!(message, format!("Machine {NOWHERE} was not found"));
}

#[tokio::test]
async fn s3_tags() {
    let place = Place::start().await;
    let tag = async |value: &str, action: &str| {
        place.client.post(&place.path("/tags"), &json!({"Value": value, "Action": action})).await
    };
    let context = format!("{}/api/$metadata#Machines/$entity", place.server.url());
    for (value, action, tags) in [
        ("finance", "Add", json!(["finance"])),
        ("finance", "Add", json!(["finance"])),
        ("a b", "Add", json!(["a b", "finance"])),
        ("finance", "Remove", json!(["a b"])),
        ("finance", "Remove", json!(["a b"])),
    ] {
        let machine = tag(value, action).await.expect_status(200);
        assert_eq!((&machine["machineTags"], &machine["@odata.context"]), (&tags, &json!(context)));
    }
    tag("x", "add").await.expect_error(400, "InvalidInput");
    tag(" ", "Add").await.expect_error(400, "InvalidInput");
    let reply = place.client.post(&place.path("/tags"), &json!({"Value": "x"})).await;
    reply.expect_error(400, "MissingRequiredParameter");
    let reader = place.server.client(&[Permission::MachineReadAll]).await;
    let reply = reader.post(&place.path("/tags"), &json!({"Value": "x", "Action": "Add"})).await;
    assert!(reply.expect_error(403, "Forbidden").contains("API required roles: Machine.ReadWrite.All,"));
}

#[tokio::test]
async fn s3_actions_of_a_machine() {
    let place = Place::start().await;
    let other = Machine::enroll(&place.server, "lab-1").await;
    let action = place.restricted().await;
    place.client.restrict(&other.id).await.expect_status(201);
    let list = place.client.get(&place.path("/machineactions")).await.expect_status(200);
    assert_eq!(list["@odata.context"], format!("{}/api/$metadata#MachineActions", place.server.url()));
    assert_eq!(ids(&place.client, &place.path("/machineactions")).await, [id(&action)]);
    let path = place.path("/machineactions?$filter=status eq 'Failed'");
    assert!(ids(&place.client, &path).await.is_empty());
}

#[tokio::test]
async fn s3_machine_fields() {
    let place = Place::start().await;
    let _connection = place.online().await;
    let machine = place.client.machine(&place.machine.id).await;
    let fields: Vec<_> = machine.as_object().unwrap().keys().map(String::as_str).collect();
    let mut expected = vec![
        "@odata.context",
        "id",
        "computerDnsName",
        "firstSeen",
        "lastSeen",
        "osPlatform",
        "osProcessor",
        "osArchitecture",
        "version",
        "osBuild",
        "healthStatus",
        "onboardingStatus",
        "rbacGroupId",
        "rbacGroupName",
        "riskScore",
        "exposureLevel",
        "deviceValue",
        "aadDeviceId",
        "machineTags",
        "lastIpAddress",
        "lastExternalIpAddress",
        "ipAddresses",
        "agentVersion",
        "executionRestriction",
    ];
    expected.sort_unstable();
    let mut found = fields.clone();
    found.sort_unstable();
    assert_eq!(found, expected);
    assert!(is_time(&machine["firstSeen"]) && is_time(&machine["lastSeen"]), "{machine}");
    assert_eq!((&machine["riskScore"], &machine["exposureLevel"]), (&json!("None"), &json!("None")));
    assert_eq!(
        (&machine["healthStatus"], &machine["onboardingStatus"]),
        (&json!("Active"), &json!("onboarded"))
    );
    assert_eq!(machine["rbacGroupId"], 0);
    for ip in machine["ipAddresses"].as_array().unwrap() {
        let fields: Vec<_> = ip.as_object().unwrap().keys().collect();
        assert_eq!(fields, ["ipAddress", "macAddress", "operationalStatus", "type"]);
    }
}

#[tokio::test]
async fn s3_execution_restriction() {
    let place = Place::start().await;
    let before = &place.client.machine(&place.machine.id).await["executionRestriction"];
    assert_eq!((&before["reported"], &before["since"]), (&json!("Unknown"), &Value::Null), "{before}");
    let _connection = place.online().await;
    let action = place.restricted().await;
    place.client.wait_for(&action, "Succeeded").await;
    let restriction = place.client.machine(&place.machine.id).await["executionRestriction"].clone();
    assert!(is_time(&restriction["since"]), "{restriction}");
    let expected = json!({
        "desired": "Restricted", "reported": "Restricted", "generation": 1, "since": restriction["since"],
        "policy": "default", "drift": false, "backend": "fanotify", "endsAt": null, "eventsDropped": 0,
        "brokenGlassAt": null,
    });
    assert_eq!(restriction, expected);
}
