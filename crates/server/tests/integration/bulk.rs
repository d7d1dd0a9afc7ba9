//! Many machines by one call, on the wire.

use domain::permission::Permission;
use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::client::Reply;
use crate::harness::machine::{Behavior, Description, Machine};
use crate::harness::server::TestServer;

const RESTRICT: &str = "/api/cordon/v1/machines/restrictCodeExecution";
const UNRESTRICT: &str = "/api/cordon/v1/machines/unrestrictCodeExecution";
const NOWHERE: &str = "0f3c9a7be1d2445566778899aabbccddeeff0011";

#[tokio::test]
async fn each_machine_has_a_result_and_proves_it() {
    let server = TestServer::start().await;
    let client = server.admin();
    let (first, _first) = Machine::online(&server, "lab-1").await;
    let (second, _second) = Machine::online(&server, "lab-2").await;
    let away = Machine::enroll(&server, "lab-3").await;
    let windows = Description { os_platform: "Windows11".to_owned(), ..Description::named("win-1") };
    let windows = Machine::enroll_described(&server, windows).await;
    let _windows = windows.connect(&server, Behavior::Obey).await;
    let open = client.restrict(&away.id).await.expect_status(201);
    let ids = json!([second.id.to_uppercase(), first.id, away.id, windows.id, NOWHERE]);
    let body = json!({"MachineIds": ids, "Comment": "contain", "ExternalId": "IR-1", "DryRun": true});
    let plan = client.post(RESTRICT, &body).await.expect_status(200);
    let expected = json!({
        "id": null, "dryRun": true, "results": [],
        "plan": {
            "total": 5, "unknown": 1, "refusal": null, "online": 3, "offline": 1, "unsupported": 1, "alreadyRestricted": 0, "alreadyActive": 1,
            "actions": 2, "impact": plan["plan"]["impact"],
        },
    });
    assert_eq!(plan, expected);
    assert_eq!(client.get("/api/machineactions/$count").await.text, "1");

    let body = json!({"MachineIds": ids, "Comment": "contain", "ExternalId": "IR-1"});
    let reply = client.post(RESTRICT, &body).await.expect_status(201);
    assert!(reply["id"].as_str().unwrap().parse::<uuid::Uuid>().is_ok());
    assert_eq!((&reply["dryRun"], &reply["plan"]), (&json!(false), &Value::Null));
    let result = |machine: &str| {
        let results = reply["results"].as_array().unwrap();
        results.iter().find(|result| result["machineId"] == machine).unwrap().clone()
    };
    let error = |machine: &str| result(machine)["error"].clone();
    assert_eq!(reply["results"][0]["machineId"], second.id, "in the order asked for");
    for machine in [&first, &second] {
        let result = result(&machine.id);
        assert_eq!(result["error"], Value::Null);
        let done = client.wait_for(&json!({"id": result["actionId"]}), "Succeeded").await;
        assert_eq!((&done["machineId"], &done["externalId"]), (&json!(machine.id), &json!("IR-1")));
        assert_eq!(done["requestorComment"], "contain");
        assert!(machine.is_restricted());
    }
    assert_eq!(error(&away.id)["code"], "ActiveRequestAlreadyExists");
    assert!(error(&away.id)["message"].as_str().unwrap().contains(open["id"].as_str().unwrap()));
    assert_eq!(error(&windows.id)["code"], "OsPlatformNotSupported");
    let unknown = json!({"code": "ResourceNotFound", "message": format!("Machine {NOWHERE} was not found")});
    assert_eq!(error(NOWHERE), unknown);
    assert_eq!(result(NOWHERE)["computerDnsName"], Value::Null);

    let body = json!({"Filter": "executionRestriction eq 'Restricted'", "Comment": "over"});
    let reply = client.post(UNRESTRICT, &body).await.expect_status(201);
    let results = reply["results"].as_array().unwrap();
    assert_eq!(results.len(), 2);
    for result in results {
        client.wait_for(&json!({"id": result["actionId"]}), "Succeeded").await;
    }
    assert!(!first.is_restricted() && !second.is_restricted());
}

#[tokio::test]
async fn a_request_that_makes_no_sense_is_refused_whole() {
    let server = TestServer::start().await;
    let client = server.admin();
    let machine = Machine::enroll(&server, "lab-1").await;
    let ids = json!([machine.id]);
    for (body, code) in [
        (json!({"MachineIds": ids}), "MissingRequiredParameter"),
        (json!({"MachineIds": ids, "Comment": " "}), "MissingRequiredParameter"),
        (json!({"Comment": "c"}), "InvalidInput"),
        (json!({"MachineIds": ids, "Filter": "id ne ''", "Comment": "c"}), "InvalidInput"),
        (json!({"MachineIds": ["lab-1"], "Comment": "c"}), "InvalidInput"),
        (json!({"MachineIds": ids, "Comment": "c", "ExpiresIn": "1 hour"}), "InvalidInput"),
        (json!({"MachineIds": ids, "Comment": "c", "Policy": "nowhere"}), "InvalidInput"),
        (json!({"Filter": "nothing eq 1", "Comment": "c"}), "ODataError"),
        (json!({"MachineIds": machine.id, "Comment": "c"}), "InvalidRequestBody"),
        (json!({"machineIds": ids, "Comment": "c"}), "InvalidRequestBody"),
        (json!({"MachineIds": ids, "Comment": "c", "DryRun": "yes"}), "InvalidRequestBody"),
    ] {
        client.post(RESTRICT, &body).await.expect_error(400, code);
    }
    assert_eq!(client.get("/api/machineactions/$count").await.text, "0");
}

#[tokio::test]
async fn more_than_the_limit_needs_the_right() {
    let server = TestServer::start().await;
    let mut ids = Vec::new();
    for number in 0..4 {
        ids.push(Machine::enroll(&server, &format!("lab-{number}")).await.id);
    }
    let settings = json!({"bulkMachinesPerHour": 2, "bulkGroupPercentPerHour": 100});
    server.admin().patch("/api/cordon/v1/settings", &settings).await.expect_status(200);
    let limited = [Permission::MachineReadAll, Permission::MachineRestrictExecution];
    let client = server.client(&limited).await;
    let body = |ids: &[String], dry_run: bool| json!({"MachineIds": ids, "Comment": "c", "DryRun": dry_run});
    let message =
        client.post(RESTRICT, &body(&ids[..3], false)).await.expect_error(403, "DisallowedOperation");
    assert!(message.starts_with("This would change 3 machines; "), "{message}");
    assert!(message.contains("\"Bulk remediation\""), "{message}");
    let plan = client.post(RESTRICT, &body(&ids[..3], true)).await.expect_status(200);
    assert_eq!((&plan["plan"]["actions"], &plan["plan"]["refusal"]), (&json!(3), &json!(message)));
    client.post(RESTRICT, &body(&ids[..2], false)).await.expect_status(201);
    client.post(RESTRICT, &body(&ids[2..3], false)).await.expect_error(403, "DisallowedOperation");
    // What was done can be undone, and the single call is free.
    client.post(UNRESTRICT, &body(&ids[..2], false)).await.expect_status(201);
    client.restrict(&ids[2]).await.expect_status(201);
    let unlimited = server.client(&[limited[1], Permission::CordonBulkRemediation]).await;
    unlimited.post(UNRESTRICT, &body(&ids, false)).await.expect_status(201);
}

#[tokio::test]
async fn the_same_key_makes_no_second_actions() {
    let server = TestServer::start().await;
    let client = server.admin();
    let ids = [Machine::enroll(&server, "lab-1").await.id, Machine::enroll(&server, "lab-2").await.id];
    let call = async |comment: &str| {
        let body = json!({"MachineIds": ids, "Comment": comment});
        let request = client.request(Method::POST, RESTRICT).header("Idempotency-Key", "job-7").json(&body);
        Reply::of(request).await.expect_status(201)["results"].clone()
    };
    let made = call("c").await;
    assert_eq!(call("c").await, made);
    assert_eq!(client.get("/api/machineactions/$count").await.text, "2");
    for result in call("another").await.as_array().unwrap() {
        assert_eq!(result["error"]["code"], "InvalidInput");
    }
}
