//! Machines: what the API says of one, by which names it is found, and what is decided before an order is made.

use domain::permission::Permission;
use serde_json::{Value, json};

use crate::harness::machine::{Behavior, Description, Machine};
use crate::harness::server::TestServer;
use crate::harness::wait_until;

#[tokio::test]
async fn a_machine_has_every_field_of_the_contract() {
    let server = TestServer::start().await;
    let client = server.client(&[Permission::MachineReadAll]).await;
    let (machine, _connection) = Machine::online(&server, "LAB-042.example").await;
    let body = client.machine(&machine.id).await;
    let (first_seen, last_seen) = (body["firstSeen"].clone(), body["lastSeen"].clone());
    let since = body["executionRestriction"]["since"].clone();
    assert!(
        first_seen.as_str() <= last_seen.as_str() && last_seen.as_str().unwrap().ends_with('Z'),
        "{body}"
    );
    assert!(since.is_string(), "{body}");
    let expected = json!({
        "@odata.context": format!("{}/api/$metadata#Machines/$entity", server.url()),
        "id": machine.id,
        "computerDnsName": "lab-042.example",
        "firstSeen": first_seen,
        "lastSeen": last_seen,
        "osPlatform": "Linux",
        "osProcessor": "x86_64",
        "osArchitecture": "x86_64",
        "version": "Debian 12",
        "osBuild": "6.18.0",
        "healthStatus": "Active",
        "onboardingStatus": "onboarded",
        "rbacGroupId": 0,
        "rbacGroupName": "Ungrouped machines (default)",
        "riskScore": "None",
        "exposureLevel": "None",
        "deviceValue": "Normal",
        "aadDeviceId": null,
        "machineTags": [],
        "lastIpAddress": "10.0.0.5",
        "lastExternalIpAddress": "127.0.0.1",
        "ipAddresses": [
            {"ipAddress": "127.0.0.1", "macAddress": null, "type": "SoftwareLoopback", "operationalStatus": "Up"},
            {"ipAddress": "10.0.0.5", "macAddress": "02AB00000001", "type": "Ethernet", "operationalStatus": "Up"},
        ],
        "agentVersion": "0.1.0",
        "executionRestriction": {
            "desired": "Released", "reported": "Released", "generation": 0, "since": since,
            "policy": null, "drift": false, "backend": "fanotify", "endsAt": null, "eventsDropped": 0,
        "brokenGlassAt": null,
        },
    });
    assert_eq!(body, expected);
}

#[tokio::test]
async fn a_machine_that_never_connected_is_there() {
    let server = TestServer::start().await;
    let machine = Machine::enroll(&server, "lab-042").await;
    let body = server.admin().machine(&machine.id).await;
    assert_eq!(body["computerDnsName"], "lab-042");
    assert_eq!(body["executionRestriction"]["reported"], "Unknown");
    assert_eq!((&body["machineTags"], &body["ipAddresses"]), (&json!([]), &json!([])));
}

#[tokio::test]
async fn machines_are_found_by_id_of_either_case_and_by_name() {
    let server = TestServer::start().await;
    let client = server.admin();
    let machine = Machine::enroll(&server, "lab-042.example").await;
    for target in
        [machine.id.clone(), machine.id.to_uppercase(), "lab-042.example".into(), "LAB-042.Example".into()]
    {
        assert_eq!(client.machine(&target).await["id"], machine.id);
        let action = client.restrict(&target).await.expect_status(201);
        assert_eq!(action["machineId"], machine.id);
        let path = format!("/api/machineactions/{}/cancel", action["id"].as_str().unwrap());
        client.post(&path, &json!({"Comment": "next"})).await.expect_status(200);
    }
}

#[tokio::test]
async fn unknown_machines_are_404_with_the_id() {
    let server = TestServer::start().await;
    let client = server.admin();
    for target in ["0f3c9a7be1d2445566778899aabbccddeeff0011", "nowhere", "a b"] {
        let expected = format!("Machine {target} was not found");
        let message =
            client.get(&format!("/api/machines/{target}")).await.expect_error(404, "ResourceNotFound");
        assert_eq!(message, expected);
        assert_eq!(client.restrict(target).await.expect_error(404, "ResourceNotFound"), expected);
        assert_eq!(client.unrestrict(target).await.expect_error(404, "ResourceNotFound"), expected);
        let path = format!("/api/machines/{target}/machineactions");
        assert_eq!(client.get(&path).await.expect_error(404, "ResourceNotFound"), expected);
    }
    // What a caller sends comes back cut short.
    let long = client.get(&format!("/api/machines/{}", "x".repeat(5000))).await;
    assert!(long.expect_error(404, "ResourceNotFound").len() < 400);
}

#[tokio::test]
async fn an_ambiguous_name_is_refused_with_the_candidates() {
    let server = TestServer::start().await;
    let client = server.admin();
    let (first, second) = (Machine::enroll(&server, "twin").await, Machine::enroll(&server, "twin").await);
    for reply in [client.get("/api/machines/twin").await, client.restrict("twin").await] {
        let message = reply.expect_error(400, "InvalidInput");
        assert!(message.contains(&first.id) && message.contains(&second.id), "{message}");
    }
    client.restrict(&first.id).await.expect_status(201);
}

#[tokio::test]
async fn what_a_machine_cannot_do_is_refused_before_an_order_is_made() {
    let server = TestServer::start().await;
    let client = server.admin();
    let windows = Description { os_platform: "Windows11".to_owned(), ..Description::named("win-1") };
    let old = Description {
        tier: None,
        tier_note: "the kernel has no fanotify permission events".to_owned(),
        ..Description::named("old-1")
    };
    for (description, code, says) in [
        (windows, "OsPlatformNotSupported", "Linux"),
        (old, "ClientVersionNotSupported", "the kernel has no fanotify permission events"),
    ] {
        let machine = Machine::enroll_described(&server, description).await;
        let _connection = machine.connect(&server, Behavior::Obey).await;
        let message = client.restrict(&machine.id).await.expect_error(400, code);
        assert!(message.contains(says), "{message}");
        let actions = client.get(&format!("/api/machines/{}/machineactions", machine.id)).await;
        assert_eq!(actions.expect_status(200)["value"], json!([]));
        let body = client.machine(&machine.id).await;
        assert_eq!(body["executionRestriction"]["generation"], 0);
    }
}

#[tokio::test]
async fn a_newer_connection_replaces_the_older() {
    let server = TestServer::start().await;
    let client = server.admin();
    let (machine, first) = Machine::online(&server, "lab-042").await;
    let _second = machine.connect(&server, Behavior::Obey).await;
    first.closed().await;
    let action = client.restrict(&machine.id).await.expect_status(201);
    client.wait_for(&action, "Succeeded").await;
}

#[tokio::test]
async fn the_actions_of_one_machine_are_its_own_newest_first() {
    let server = TestServer::start().await;
    let client = server.admin();
    let (machine, _connection) = Machine::online(&server, "lab-042").await;
    let other = Machine::enroll(&server, "lab-043").await;
    client.restrict(&other.id).await.expect_status(201);
    let mut made: Vec<Value> = Vec::new();
    for restrict in [true, false, true] {
        let reply =
            if restrict { client.restrict(&machine.id).await } else { client.unrestrict(&machine.id).await };
        let action = reply.expect_status(201);
        client.wait_for(&action, "Succeeded").await;
        made.insert(0, action["id"].clone());
    }
    for target in [machine.id.as_str(), "lab-042"] {
        let list = client.get(&format!("/api/machines/{target}/machineactions")).await.expect_status(200);
        assert_eq!(list["@odata.context"], format!("{}/api/$metadata#MachineActions", server.url()));
        let ids: Vec<_> =
            list["value"].as_array().unwrap().iter().map(|action| action["id"].clone()).collect();
        assert_eq!(ids, made);
    }
    let path =
        format!("/api/machines/{}/machineactions?$filter=type eq 'RestrictCodeExecution'&$top=1", machine.id);
    let list = client.get(&path).await.expect_status(200);
    assert_eq!(list["value"].as_array().unwrap().len(), 1);
    assert_eq!(list["value"][0]["id"], made[0]);
}

#[tokio::test]
async fn last_seen_moves_with_what_is_heard() {
    let server = TestServer::start().await;
    let client = server.admin();
    let machine = Machine::enroll(&server, "lab-042").await;
    let before = client.machine(&machine.id).await["lastSeen"].clone();
    let _connection = machine.connect(&server, Behavior::Obey).await;
    wait_until("lastSeen has moved", async || {
        client.machine(&machine.id).await["lastSeen"].as_str() > before.as_str()
    })
    .await;
}
