//! Machine actions: from 201 to proved, and every other end.

use std::collections::BTreeSet;

use domain::permission::Permission;
use serde_json::{Value, json};

use crate::harness::client::Client;
use crate::harness::machine::{Behavior, Machine};
use crate::harness::server::TestServer;
use crate::harness::wait_until;

fn id(action: &Value) -> &str {
    action["id"].as_str().unwrap()
}

async fn cancel(client: &Client, action: &Value) -> crate::harness::client::Reply {
    let path = format!("/api/machineactions/{}/cancel", id(action));
    client.post(&path, &json!({"Comment": "not needed"})).await
}

/// Whether this is a time as the contract writes it: UTC, `Z`, seven fractional digits.
fn is_time(value: &Value) -> bool {
    let pattern = "dddd-dd-ddTdd:dd:dd.dddddddZ";
    value.as_str().is_some_and(|text| {
        text.len() == pattern.len()
            && text
                .chars()
                .zip(pattern.chars())
                .all(|(c, p)| if p == 'd' { c.is_ascii_digit() } else { c == p })
    })
}

#[tokio::test]
async fn a_restrict_is_201_with_the_contracts_body() {
    let server = TestServer::start().await;
    let client = server.client(&[Permission::MachineReadAll, Permission::MachineRestrictExecution]).await;
    let machine = Machine::enroll(&server, "lab-042").await;
    let path = format!("/api/machines/{}/restrictCodeExecution", machine.id);
    let reply = client.post(&path, &json!({"Comment": "IR-20771 contain while triaging"})).await;
    assert_eq!(reply.status, 201);
    assert_eq!(reply.headers["content-type"], "application/json");
    let body = &reply.body;
    let (action, created) = (id(body).to_owned(), body["creationDateTimeUtc"].clone());
    assert!(action.parse::<uuid::Uuid>().is_ok() && is_time(&created), "{body}");
    let expected = json!({
        "@odata.context": format!("{}/api/$metadata#MachineActions/$entity", server.url()),
        "id": action,
        "type": "RestrictCodeExecution", "title": null,
        "requestor": client.app,
        "requestorComment": "IR-20771 contain while triaging",
        "status": "Pending",
        "machineId": machine.id, "computerDnsName": "lab-042",
        "creationDateTimeUtc": created,
        "lastUpdateDateTimeUtc": created,
        "cancellationRequestor": null, "cancellationComment": null, "cancellationDateTimeUtc": null,
        "errorHResult": 0, "scope": null, "externalId": null, "requestSource": "PublicApi",
        "relatedFileInfo": null, "commands": [], "troubleshootInfo": null,
    });
    assert_eq!(*body, expected);
    // The id resolves at once, and to the same.
    assert_eq!(client.action(&action).await, expected);
    let unrestrict = client.unrestrict(&machine.id).await.expect_status(201);
    assert_eq!(
        (&unrestrict["type"], &unrestrict["status"]),
        (&json!("UnrestrictCodeExecution"), &json!("Pending"))
    );
}

#[tokio::test]
async fn a_machine_that_obeys_proves_it() {
    let server = TestServer::start().await;
    let client = server.admin();
    let (machine, _connection) = Machine::online(&server, "lab-042").await;
    let action = client.restrict(&machine.id).await.expect_status(201);
    let proved = client.wait_for(&action, "Succeeded").await;
    assert!(machine.is_restricted());
    assert!(is_time(&proved["lastUpdateDateTimeUtc"]));
    assert!(proved["lastUpdateDateTimeUtc"].as_str() > proved["creationDateTimeUtc"].as_str());
    assert_eq!((&proved["errorHResult"], &proved["troubleshootInfo"]), (&json!(0), &Value::Null));
    let restriction = &client.machine(&machine.id).await["executionRestriction"];
    assert_eq!(restriction["desired"], "Restricted");
    assert_eq!(restriction["reported"], "Restricted");
    assert_eq!(restriction["generation"], 1);
    assert_eq!(restriction["policy"], "default");
    assert_eq!(restriction["drift"], false);
    assert_eq!(restriction["backend"], "fanotify");
    assert!(is_time(&restriction["since"]));

    let action = client.unrestrict(&machine.id).await.expect_status(201);
    client.wait_for(&action, "Succeeded").await;
    assert!(!machine.is_restricted());
    let restriction = &client.machine(&machine.id).await["executionRestriction"];
    assert_eq!((&restriction["desired"], &restriction["reported"]), (&json!("Released"), &json!("Released")));
    assert_eq!((&restriction["generation"], &restriction["drift"]), (&json!(2), &json!(false)));
}

#[tokio::test]
async fn the_receipt_can_be_checked_by_anybody() {
    let server = TestServer::start().await;
    let client = server.admin();
    let (machine, _connection) = Machine::online(&server, "lab-042").await;
    let action = client.restrict(&machine.id).await.expect_status(201);
    client.wait_for(&action, "Succeeded").await;
    let path = format!("/api/cordon/v1/machineactions/{}/receipt", id(&action));
    let receipt = client.get(&path).await.expect_status(200);
    assert_eq!(receipt["publicKey"], machine.gate_key());
    assert_eq!(receipt["payload"]["action"], id(&action));
    assert_eq!(receipt["payload"]["outcome"], "enforced");
    assert_eq!(receipt["payload"]["probe"], json!({"unlisted": "refused", "listed": "ran"}));
    let envelope = receipt["envelope"].to_string();
    let (key, machine_id) = (machine.gate_key().parse().unwrap(), machine.id.parse().unwrap());
    let verified = orders::VerifiedReceipt::verify(envelope.as_bytes(), key, machine_id).unwrap();
    assert_eq!(verified.receipt().action.0.to_string(), id(&action));
}

#[tokio::test]
async fn an_action_without_a_receipt_has_none() {
    let server = TestServer::start().await;
    let client = server.admin();
    let machine = Machine::enroll(&server, "lab-042").await;
    let action = client.restrict(&machine.id).await.expect_status(201);
    let path = format!("/api/cordon/v1/machineactions/{}/receipt", id(&action));
    client.get(&path).await.expect_error(404, "ResourceNotFound");
}

#[tokio::test]
async fn a_machine_that_is_away_obeys_when_it_comes() {
    let server = TestServer::start().await;
    let client = server.admin();
    let machine = Machine::enroll(&server, "lab-042").await;
    let action = client.restrict(&machine.id).await.expect_status(201);
    assert_eq!(client.action(id(&action)).await["status"], "Pending");
    let _connection = machine.connect(&server, Behavior::Obey).await;
    client.wait_for(&action, "Succeeded").await;
    assert!(machine.is_restricted());
}

#[tokio::test]
async fn what_the_machine_cannot_do_is_failed_with_the_reason() {
    let server = TestServer::start().await;
    let client = server.admin();
    for (behavior, reason) in [
        (Behavior::Refuse, "the test's gate refuses"),
        (Behavior::FailToApply, "no mark could be set"),
        (Behavior::FailProbe, "the unlisted program ran"),
    ] {
        let machine = Machine::enroll(&server, "lab-042").await;
        let _connection = machine.connect(&server, behavior).await;
        let action = client.restrict(&machine.id).await.expect_status(201);
        let failed = client.wait_for(&action, "Failed").await;
        assert_eq!(failed["troubleshootInfo"], reason);
        assert_eq!(failed["errorHResult"], -2_147_467_259);
        assert!(!machine.is_restricted());
        // A final action is out of the way.
        client.restrict(&machine.id).await.expect_status(201);
    }
}

#[tokio::test]
async fn an_accepted_order_is_in_progress() {
    let server = TestServer::start().await;
    let client = server.admin();
    let machine = Machine::enroll(&server, "lab-042").await;
    let _connection = machine.connect(&server, Behavior::AcceptOnly).await;
    let action = client.restrict(&machine.id).await.expect_status(201);
    client.wait_for(&action, "InProgress").await;
    let message = client.restrict(&machine.id).await.expect_error(400, "ActiveRequestAlreadyExists");
    assert!(message.contains(id(&action)));
}

#[tokio::test]
async fn the_same_kind_twice_is_refused_with_the_active_id() {
    let server = TestServer::start().await;
    let client = server.admin();
    let machine = Machine::enroll(&server, "lab-042").await;
    let _connection = machine.connect(&server, Behavior::Silent).await;
    let action = client.restrict(&machine.id).await.expect_status(201);
    let message = client.restrict(&machine.id).await.expect_error(400, "ActiveRequestAlreadyExists");
    assert!(message.starts_with("Action is already in progress"), "{message}");
    assert!(message.contains(id(&action)), "{message}");
    assert_eq!(client.action(id(&action)).await["status"], "Pending");
}

#[tokio::test]
async fn of_many_calls_at_once_one_makes_the_action() {
    let server = TestServer::start().await;
    let client = server.admin();
    let machine = Machine::enroll(&server, "lab-042").await;
    let calls = (0..30).map(|_| client.restrict(&machine.id));
    let replies = futures_util::future::join_all(calls).await;
    let (made, refused): (Vec<_>, Vec<_>) = replies.into_iter().partition(|reply| reply.status == 201);
    assert_eq!(made.len(), 1);
    for reply in refused {
        let message = reply.expect_error(400, "ActiveRequestAlreadyExists");
        assert!(message.contains(id(&made[0].body)), "{message}");
    }
    assert_eq!(client.get("/api/machineactions/$count").await.text, "1");
    assert_eq!(client.machine(&machine.id).await["executionRestriction"]["generation"], 1);
}

#[tokio::test]
async fn the_opposite_kind_supersedes() {
    let server = TestServer::start().await;
    let client = server.client(&[Permission::MachineReadAll, Permission::MachineRestrictExecution]).await;
    let machine = Machine::enroll(&server, "lab-042").await;
    let older = server.admin().restrict(&machine.id).await.expect_status(201);
    let newer = client.unrestrict(&machine.id).await.expect_status(201);
    let older = client.action(id(&older)).await;
    assert_eq!(older["status"], "Cancelled");
    assert!(older["cancellationComment"].as_str().unwrap().contains(id(&newer)));
    assert_eq!(older["cancellationRequestor"], client.app.as_str());
    assert!(is_time(&older["cancellationDateTimeUtc"]));
    let _connection = machine.connect(&server, Behavior::Obey).await;
    client.wait_for(&newer, "Succeeded").await;
    assert!(!machine.is_restricted());
    assert_eq!(client.action(id(&older)).await["status"], "Cancelled");
}

#[tokio::test]
async fn what_is_restricted_already_confirms_it_again() {
    let server = TestServer::start().await;
    let client = server.admin();
    let (machine, connection) = Machine::online(&server, "lab-042").await;
    // Releasing what was never restricted is confirmed likewise.
    for (generation, restrict) in [(1, false), (2, true), (3, true), (4, false), (5, false)] {
        let reply =
            if restrict { client.restrict(&machine.id).await } else { client.unrestrict(&machine.id).await };
        client.wait_for(&reply.expect_status(201), "Succeeded").await;
        assert_eq!(machine.is_restricted(), restrict);
        let reported = &client.machine(&machine.id).await["executionRestriction"];
        assert_eq!((&reported["generation"], &reported["drift"]), (&json!(generation), &json!(false)));
    }
    assert_eq!(connection.ordered().len(), 5);
}

#[tokio::test]
async fn an_open_action_can_be_cancelled() {
    let server = TestServer::start().await;
    let client = server.client(&[Permission::MachineReadAll, Permission::MachineRestrictExecution]).await;
    let machine = Machine::enroll(&server, "lab-042").await;
    let action = client.restrict(&machine.id).await.expect_status(201);
    let cancelled = cancel(&client, &action).await.expect_status(200);
    assert_eq!(cancelled["id"], action["id"]);
    assert_eq!(cancelled["status"], "Cancelled");
    assert_eq!(cancelled["cancellationComment"], "not needed");
    assert_eq!(cancelled["cancellationRequestor"], client.app.as_str());
    assert!(is_time(&cancelled["cancellationDateTimeUtc"]));
    assert_eq!(cancelled["requestorComment"], "test");
    assert_eq!(client.action(id(&action)).await, cancelled);
    // The machine is never told, and nothing is wanted of it.
    let connection = machine.connect(&server, Behavior::Obey).await;
    let restriction = &client.machine(&machine.id).await["executionRestriction"];
    assert_eq!((&restriction["desired"], &restriction["drift"]), (&json!("Released"), &json!(false)));
    let next = client.unrestrict(&machine.id).await.expect_status(201);
    client.wait_for(&next, "Succeeded").await;
    assert_eq!(connection.ordered(), BTreeSet::from([id(&next).to_owned()]));
    assert!(!machine.is_restricted());
}

#[tokio::test]
async fn a_final_action_cannot_be_cancelled() {
    let server = TestServer::start().await;
    let client = server.admin();
    let (machine, _connection) = Machine::online(&server, "lab-042").await;
    let action = client.restrict(&machine.id).await.expect_status(201);
    client.wait_for(&action, "Succeeded").await;
    let message = cancel(&client, &action).await.expect_error(400, "BadRequest");
    assert!(message.contains("Succeeded"), "{message}");
    assert_eq!(client.action(id(&action)).await["status"], "Succeeded");

    let action = client.unrestrict(&Machine::enroll(&server, "lab-043").await.id).await.expect_status(201);
    cancel(&client, &action).await.expect_status(200);
    let message = cancel(&client, &action).await.expect_error(400, "BadRequest");
    assert!(message.contains("Cancelled"), "{message}");
}

#[tokio::test]
async fn cancel_needs_a_comment_and_an_action() {
    let server = TestServer::start().await;
    let client = server.admin();
    let machine = Machine::enroll(&server, "lab-042").await;
    let action = client.restrict(&machine.id).await.expect_status(201);
    let path = format!("/api/machineactions/{}/cancel", id(&action));
    let message = client.post(&path, &json!({})).await.expect_error(400, "MissingRequiredParameter");
    assert_eq!(message, "Parameter Comment is missing");
    for unknown in ["00000000-0000-0000-0000-000000000000", "nonsense"] {
        let message = cancel(&client, &json!({"id": unknown})).await.expect_error(404, "ResourceNotFound");
        assert!(message.contains(unknown), "{message}");
        let path = format!("/api/machineactions/{unknown}");
        client.get(&path).await.expect_error(404, "ResourceNotFound");
    }
}

#[tokio::test]
async fn what_nobody_answers_times_out_and_is_withdrawn() {
    let server = TestServer::start_with(|config| config.action_deadline_seconds = 3).await;
    let client = server.admin();
    let machine = Machine::enroll(&server, "lab-042").await;
    let connection = machine.connect(&server, Behavior::Silent).await;
    let action = client.restrict(&machine.id).await.expect_status(201);
    let ended = client.wait_for(&action, "TimeOut").await;
    assert_eq!(ended["cancellationDateTimeUtc"], Value::Null);
    assert_eq!(client.machine(&machine.id).await["executionRestriction"]["desired"], "Released");
    drop(connection);
    // It comes back and is not told what is not wanted any more.
    let connection = machine.connect(&server, Behavior::Obey).await;
    let next = client.unrestrict(&machine.id).await.expect_status(201);
    client.wait_for(&next, "Succeeded").await;
    assert_eq!(connection.ordered(), BTreeSet::from([id(&next).to_owned()]));
    assert!(!machine.is_restricted());
    assert_eq!(client.action(id(&action)).await["status"], "TimeOut");
}

#[tokio::test]
async fn a_later_cancel_does_not_free_a_machine_that_obeyed_before() {
    let server = TestServer::start().await;
    let client = server.admin();
    let (machine, connection) = Machine::online(&server, "lab-042").await;
    let restrict = client.restrict(&machine.id).await.expect_status(201);
    client.wait_for(&restrict, "Succeeded").await;
    drop(connection);
    let release = client.unrestrict(&machine.id).await.expect_status(201);
    cancel(&client, &release).await.expect_status(200);
    let _connection = machine.connect(&server, Behavior::Obey).await;
    wait_until("the machine is what is wanted", async || {
        let restriction = &client.machine(&machine.id).await["executionRestriction"];
        restriction["desired"] == "Restricted" && restriction["reported"] == "Restricted"
    })
    .await;
    assert!(machine.is_restricted());
}
