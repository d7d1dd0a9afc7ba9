//! Section 2: the entity, field by field, and its life.

use domain::permission::Permission;
use serde_json::{Value, json};

use super::{Place, id, ids, is_time, settings_set};
use crate::harness::client::Reply;
use crate::harness::machine::Behavior;

/// What a new action has in a field.
async fn new(field: &str) -> Value {
    let place = Place::start().await;
    let action = place.restricted().await;
    let fetched = place.client.action(id(&action)).await;
    let listed = place.client.get("/api/machineactions").await.expect_status(200);
    let value = action.get(field).unwrap_or_else(|| panic!("{field} is absent: {action}")).clone();
    assert_eq!((fetched.get(field), listed["value"][0].get(field)), (Some(&value), Some(&value)), "{field}");
    value
}

async fn cancel(place: &Place, action: &Value, body: &Value) -> Reply {
    place.client.post(&format!("/api/machineactions/{}/cancel", id(action)), body).await
}

/// An action of a machine that fails, once it has failed.
async fn failed(place: &Place, behavior: Behavior) -> Value {
    let _connection = place.machine.connect(&place.server, behavior).await;
    let action = place.restricted().await;
    place.client.wait_for(&action, "Failed").await
}

#[tokio::test]
async fn s2_id() {
    assert!(new("id").await.as_str().unwrap().parse::<uuid::Uuid>().is_ok());
}

#[tokio::test]
async fn s2_type() {
    let place = Place::start().await;
    let action = place.restricted().await;
    assert_eq!(action["type"], "RestrictCodeExecution");
    // Every type of the vendor's can be asked for; only two are made here.
    for (name, found) in [
        ("RunAntiVirusScan", 0),
        ("Offboard", 0),
        ("LiveResponse", 0),
        ("CollectInvestigationPackage", 0),
        ("Isolate", 0),
        ("Unisolate", 0),
        ("StopAndQuarantineFile", 0),
        ("RestrictCodeExecution", 1),
        ("UnrestrictCodeExecution", 0),
    ] {
        let path = format!("/api/machineactions?$filter=type eq '{name}'");
        assert_eq!(ids(&place.client, &path).await.len(), found, "{name}");
    }
}

#[tokio::test]
async fn s2_title() {
    assert_eq!(new("title").await, Value::Null);
}

#[tokio::test]
async fn s2_requestor() {
    let place = Place::with_people().await;
    assert_eq!(place.restricted().await["requestor"], place.client.app.as_str());
    place.role("responder", &["Active remediation actions"], &["soc"]).await;
    place.account("Ann@lab.example", &["soc"]).await;
    let ann = place.sign_in("ann@lab.example", &["Machine.RestrictExecution"]).await;
    let action = ann.unrestrict(&place.machine.id).await.expect_status(201);
    assert_eq!(action["requestor"], "ann@lab.example");
}

#[tokio::test]
async fn s2_requestor_comment() {
    let place = Place::start().await;
    let comment = " IR-20771: \"contain\"\n\u{1f980} ";
    let body = json!({"Comment": comment});
    let action = place.client.post(&place.path("/restrictCodeExecution"), &body).await.expect_status(201);
    assert_eq!(action["requestorComment"], comment);
}

#[tokio::test]
async fn s2_status() {
    let place = Place::start().await;
    assert_eq!(place.restricted().await["status"], "Pending");
    for status in ["Pending", "InProgress", "Succeeded", "Failed", "TimeOut", "Cancelled"] {
        let found = ids(&place.client, &format!("/api/machineactions?$filter=status eq '{status}'")).await;
        assert_eq!(found.len(), usize::from(status == "Pending"), "{status}");
    }
    let one_l = place.client.get("/api/machineactions?$filter=status eq 'Canceled'").await;
    one_l.expect_error(400, "ODataError");
}

#[tokio::test]
async fn s2_machine_id_and_name() {
    let place = Place::start().await;
    let action = place.restricted().await;
    assert_eq!(
        (&action["machineId"], &action["computerDnsName"]),
        (&json!(place.machine.id), &json!("lab-042"))
    );
}

#[tokio::test]
async fn s2_times() {
    let place = Place::start().await;
    let action = place.restricted().await;
    let created = action["creationDateTimeUtc"].as_str().unwrap();
    assert!(is_time(&action["creationDateTimeUtc"]) && is_time(&action["lastUpdateDateTimeUtc"]), "{action}");
    assert!(action.get("lastUpdateTimeUtc").is_none(), "{action}");
    let whole = created.split_once('.').unwrap().0;
    for digits in 0..=9 {
        let point = if digits == 0 { "" } else { "." };
        let zero = format!("{whole}{point}{}Z", "0".repeat(digits));
        let path = format!("/api/machineactions?$filter=creationDateTimeUtc ge {zero}");
        assert_eq!(ids(&place.client, &path).await, [id(&action)], "{zero}");
    }
}

#[tokio::test]
async fn s2_cancellation() {
    let place = Place::start().await;
    let action = place.restricted().await;
    let fields = ["cancellationRequestor", "cancellationComment", "cancellationDateTimeUtc"];
    assert!(fields.iter().all(|field| action[field].is_null()), "{action}");
    let action = cancel(&place, &action, &json!({"Comment": "false alarm"})).await.expect_status(200);
    assert_eq!(action["cancellationRequestor"], place.client.app.as_str());
    assert_eq!(action["cancellationComment"], "false alarm");
    assert!(is_time(&action["cancellationDateTimeUtc"]), "{action}");
}

#[tokio::test]
async fn s2_error_h_result() {
    let place = Place::start().await;
    assert_eq!(failed(&place, Behavior::FailToApply).await["errorHResult"], -2_147_467_259);
    let _connection = place.online().await;
    let action = place.restricted().await;
    assert_eq!(action["errorHResult"], 0);
    assert_eq!(place.client.wait_for(&action, "Succeeded").await["errorHResult"], 0);
}

#[tokio::test]
async fn s2_scope() {
    assert_eq!(new("scope").await, Value::Null);
}

#[tokio::test]
async fn s2_external_id() {
    assert_eq!(new("externalId").await, Value::Null);
    let place = Place::start().await;
    let body = json!({"Comment": "x", "ExternalId": "IR-20771"});
    let action = place.client.post(&place.path("/restrictCodeExecution"), &body).await.expect_status(201);
    assert_eq!(action["externalId"], "IR-20771");
    let found = ids(&place.client, "/api/machineactions?$filter=externalId eq 'IR-20771'").await;
    assert_eq!(found, [id(&action)]);
}

#[tokio::test]
async fn s2_request_source() {
    assert_eq!(new("requestSource").await, "PublicApi");
}

#[tokio::test]
async fn s2_related_file_info() {
    assert_eq!(new("relatedFileInfo").await, Value::Null);
}

#[tokio::test]
async fn s2_commands() {
    assert_eq!(new("commands").await, json!([]));
}

#[tokio::test]
async fn s2_troubleshoot_info() {
    assert_eq!(new("troubleshootInfo").await, Value::Null);
    let place = Place::start().await;
    let why = failed(&place, Behavior::FailProbe).await["troubleshootInfo"].clone();
    assert_eq!(why, "the unlisted program ran");
}

#[tokio::test]
async fn s2_life_of_an_action() {
    let place = Place::start().await;
    let action = place.restricted().await;
    assert_eq!(action["status"], "Pending");
    let connection = place.machine.connect(&place.server, Behavior::AcceptOnly).await;
    place.client.wait_for(&action, "InProgress").await;
    drop(connection);
    place.machine.finish_order();
    let _connection = place.online().await;
    let proved = place.client.wait_for(&action, "Succeeded").await;
    let path = format!("/api/cordon/v1/machineactions/{}/receipt", id(&action));
    let receipt = place.client.get(&path).await.expect_status(200);
    assert_eq!(receipt["payload"]["probe"], json!({"unlisted": "refused", "listed": "ran"}));
    // Final is final, whatever comes after.
    cancel(&place, &action, &json!({"Comment": "x"})).await.expect_error(400, "BadRequest");
    let next = place.client.unrestrict(&place.machine.id).await.expect_status(201);
    place.client.wait_for(&next, "Succeeded").await;
    assert_eq!(place.client.action(id(&action)).await, proved);
}

#[tokio::test]
async fn s2_failed() {
    let place = Place::start().await;
    for (behavior, why) in [
        (Behavior::Refuse, "the test's gate refuses"),
        (Behavior::FailToApply, "no mark could be set"),
        (Behavior::FailProbe, "the unlisted program ran"),
    ] {
        assert_eq!(failed(&place, behavior).await["troubleshootInfo"], why);
    }
}

#[tokio::test]
async fn s2_time_out() {
    let place = Place::start().await;
    let settings = place.client.get("/api/cordon/v1/settings").await.expect_status(200);
    let deadline = json!({
        "name": "actionDeadlineSeconds", "value": 259_200, "default": 259_200, "isSet": false,
    });
    assert!(settings["value"].as_array().unwrap().contains(&deadline), "{settings}");
    settings_set(&place.client, &json!({"actionDeadlineSeconds": 1})).await;
    let action = place.restricted().await;
    place.client.wait_for(&action, "TimeOut").await;
    assert_eq!(place.client.machine(&place.machine.id).await["executionRestriction"]["desired"], "Released");
}

#[tokio::test]
async fn s2_fetch() {
    let place = Place::start().await;
    let action = place.restricted().await;
    assert_eq!(place.client.action(id(&action)).await, action);
    assert_eq!(place.client.action(&id(&action).to_uppercase()).await, action);
    for unknown in ["00000000-0000-0000-0000-000000000000", "nonsense"] {
        let reply = place.client.get(&format!("/api/machineactions/{unknown}")).await;
        let message = reply.expect_error(404, "ResourceNotFound");
        assert_eq!(message, format!("MachineAction {unknown} was not found"));
    }
}

#[tokio::test]
async fn s2_cancel() {
    let place = Place::start().await;
    let action = place.restricted().await;
    cancel(&place, &action, &json!({})).await.expect_error(400, "MissingRequiredParameter");
    let reader = place.server.client(&[Permission::MachineReadWriteAll]).await;
    let path = format!("/api/machineactions/{}/cancel", id(&action));
    reader.post(&path, &json!({"Comment": "x"})).await.expect_error(403, "Forbidden");
    let cancelled = cancel(&place, &action, &json!({"Comment": "x"})).await.expect_status(200);
    assert_eq!((&cancelled["id"], &cancelled["status"]), (&action["id"], &json!("Cancelled")));
    let message = cancel(&place, &action, &json!({"Comment": "x"})).await.expect_error(400, "BadRequest");
    assert!(message.contains("Cancelled"), "{message}");
}

#[tokio::test]
async fn s2_restricting_is_not_reading() {
    let place = Place::start().await;
    let client = place.server.client(&[Permission::MachineRestrictExecution]).await;
    let action = client.restrict(&place.machine.id).await.expect_status(201);
    let message =
        client.get(&format!("/api/machineactions/{}", id(&action))).await.expect_error(403, "Forbidden");
    assert!(message.ends_with("and does not include reading them."), "{message}");
    let path = format!("/api/machineactions/{}/cancel", id(&action));
    client.post(&path, &json!({"Comment": "x"})).await.expect_status(200);
}
