//! Section 1: restrict and unrestrict.

use domain::permission::Permission;
use reqwest::Method;
use serde_json::{Value, json};

use super::{Place, id, is_time};
use crate::harness::client::Reply;
use crate::harness::machine::{Behavior, Description, Machine};
use crate::harness::wait_until;

const KINDS: [&str; 2] = ["restrictCodeExecution", "unrestrictCodeExecution"];

fn restrict(place: &Place) -> String {
    place.path("/restrictCodeExecution")
}

/// Posts a restrict with a header more.
async fn post_with(place: &Place, header: (&str, &str), body: &Value) -> Reply {
    Reply::of(place.client.request(Method::POST, &restrict(place)).header(header.0, header.1).json(body))
        .await
}

#[tokio::test]
async fn s1_request() {
    let place = Place::start().await;
    for kind in KINDS {
        let path = place.path(&format!("/{kind}"));
        let action = place.client.post(&path, &json!({"Comment": "x"})).await.expect_status(201);
        assert_eq!(action["machineId"], place.machine.id);
        place.client.get(&path).await.expect_error(405, "MethodNotAllowed");
    }
}

#[tokio::test]
async fn s1_application_permission() {
    let place = Place::start().await;
    let others: Vec<_> =
        Permission::ALL.into_iter().filter(|held| *held != Permission::MachineRestrictExecution).collect();
    let without = place.server.client(&others).await;
    let with = place.server.client(&[Permission::MachineRestrictExecution]).await;
    for kind in KINDS {
        let path = place.path(&format!("/{kind}"));
        let message = without.post(&path, &json!({"Comment": "x"})).await.expect_error(403, "Forbidden");
        assert!(message.contains("API required roles: Machine.RestrictExecution,"), "{message}");
        with.post(&path, &json!({"Comment": "x"})).await.expect_status(201);
    }
}

#[tokio::test]
async fn s1_delegated_permission() {
    let place = Place::with_people().await;
    place.role("responder", &["Active remediation actions"], &["soc"]).await;
    place.role("reader", &["View data"], &["staff"]).await;
    place.machine_group("lab", "lab", &["soc", "staff"]).await;
    place.machine_group("office", "office", &["office"]).await;
    let elsewhere = Machine::enroll(&place.server, "office-1").await;
    place.account("ann", &["soc"]).await;
    place.account("bob", &["staff"]).await;
    let ann = place.sign_in("ann", &["Machine.RestrictExecution"]).await;
    ann.restrict(&place.machine.id).await.expect_status(201);
    // The scope alone, the role alone, the group alone: each is missing once.
    let bob = place.sign_in("bob", &["Machine.RestrictExecution"]).await;
    let message = bob.restrict(&place.machine.id).await.expect_error(403, "Forbidden");
    assert!(message.contains("Active remediation actions"), "{message}");
    let reading = place.sign_in("ann", &["Machine.Read"]).await;
    let message = reading.restrict(&place.machine.id).await.expect_error(403, "Forbidden");
    assert!(message.starts_with("Missing application scopes."), "{message}");
    ann.restrict(&elsewhere.id).await.expect_error(404, "ResourceNotFound");
    for person in [&ann, &bob, &reading] {
        assert_ne!(person.unrestrict(&elsewhere.id).await.status, 201);
    }
    ann.unrestrict(&place.machine.id).await.expect_status(201);
}

#[tokio::test]
async fn s1_headers() {
    let place = Place::start().await;
    let path = restrict(&place);
    let body = "{\"Comment\": \"x\"}";
    let url = format!("{}{path}", place.client.base);
    let reply =
        Reply::of(place.client.http.post(url).header("content-type", "application/json").body(body)).await;
    reply.expect_error(401, "Unauthorized");
    place.client.post_raw(&path, None, body).await.expect_error(400, "InvalidRequestBody");
    place.client.post_raw(&path, Some("application/json"), body).await.expect_status(201);
}

#[tokio::test]
async fn s1_body() {
    let place = Place::start().await;
    let path = restrict(&place);
    place.client.post(&path, &json!({})).await.expect_error(400, "MissingRequiredParameter");
    let message =
        place.client.post(&path, &json!({"comment": "x"})).await.expect_error(400, "InvalidRequestBody");
    assert!(message.contains("\"Comment\""), "{message}");
    let action = place.client.post(&path, &json!({"Comment": "x"})).await.expect_status(201);
    assert_eq!(action["requestorComment"], "x");
}

#[tokio::test]
async fn s1_success() {
    let place = Place::start().await;
    let context = format!("{}/api/$metadata#MachineActions/$entity", place.server.url());
    for kind in KINDS {
        let path = place.path(&format!("/{kind}"));
        let reply = place.client.post(&path, &json!({"Comment": "x"})).await;
        assert_eq!(
            (reply.status, &reply.headers["content-type"]),
            (201, &"application/json".parse().unwrap())
        );
        assert_eq!(reply.body["@odata.context"], context);
    }
}

#[tokio::test]
async fn s1_rate_limit() {
    let place = Place::start().await;
    let settings = place.client.get("/api/cordon/v1/settings").await.expect_status(200);
    let value = |name: &str| {
        let settings = settings["value"].as_array().unwrap();
        settings.iter().find(|setting| setting["name"] == name).unwrap()["value"].as_u64().unwrap()
    };
    assert_eq!((value("rateLimitPerMinute"), value("rateLimitPerHour")), (100, 1500));
    let low = Place::start_with(|config| config.rate_limit_per_minute = 2).await;
    for _ in 0..2 {
        assert_ne!(low.client.restrict(&low.machine.id).await.status, 429);
        assert_ne!(low.client.unrestrict(&low.machine.id).await.status, 429);
    }
    low.client.restrict(&low.machine.id).await.expect_error(429, "TooManyRequests");
    low.client.unrestrict(&low.machine.id).await.expect_error(429, "TooManyRequests");
}

#[tokio::test]
async fn s1_action_type() {
    let place = Place::start().await;
    assert_eq!(place.restricted().await["type"], "RestrictCodeExecution");
    let action = place.client.unrestrict(&place.machine.id).await.expect_status(201);
    assert_eq!(action["type"], "UnrestrictCodeExecution");
}

#[tokio::test]
async fn s1_example() {
    let place = Place::start().await;
    let body = json!({"Comment": "IR-20771 contain while triaging"});
    let action = place.client.post(&restrict(&place), &body).await.expect_status(201);
    let created = &action["creationDateTimeUtc"];
    assert!(is_time(created), "{action}");
    let expected = json!({
        "@odata.context": format!("{}/api/$metadata#MachineActions/$entity", place.server.url()),
        "id": action["id"],
        "type": "RestrictCodeExecution", "title": null,
        "requestor": place.client.app,
        "requestorComment": "IR-20771 contain while triaging",
        "status": "Pending",
        "machineId": place.machine.id, "computerDnsName": "lab-042",
        "creationDateTimeUtc": created,
        "lastUpdateDateTimeUtc": created,
        "cancellationRequestor": null, "cancellationComment": null, "cancellationDateTimeUtc": null,
        "errorHResult": 0, "scope": null, "externalId": null, "requestSource": "PublicApi",
        "relatedFileInfo": null, "commands": [], "troubleshootInfo": null,
    });
    assert_eq!(action, expected);
}

#[tokio::test]
async fn s1_spelling_of_paths() {
    let place = Place::start().await;
    let machine = &place.machine.id;
    for path in [
        format!("/api/machines/{machine}/restrictCodeExecution"),
        format!("/api/v1.0/machines/{machine}/unrestrictCodeExecution"),
        format!("/API/Machines/{machine}/RestrictCodeExecution"),
        format!("/api/V1.0/MACHINES/{machine}/UNRESTRICTCODEEXECUTION/"),
        format!("/api/machines/{machine}/restrictcodeexecution/"),
    ] {
        place.client.post(&path, &json!({"Comment": "x"})).await.expect_status(201);
    }
}

#[tokio::test]
async fn s1_machine_id_or_name() {
    let place = Place::start().await;
    let upper = place.machine.id.to_uppercase();
    for (at, target) in [place.machine.id.as_str(), &upper, "lab-042", "LAB-042"].into_iter().enumerate() {
        let reply = if at % 2 == 0 {
            place.client.restrict(target).await
        } else {
            place.client.unrestrict(target).await
        };
        assert_eq!(reply.expect_status(201)["machineId"], place.machine.id, "{target}");
    }
    let twin = Machine::enroll(&place.server, "lab-042").await;
    let message = place.client.restrict("lab-042").await.expect_error(400, "InvalidInput");
    assert!(message.contains(&place.machine.id) && message.contains(&twin.id), "{message}");
    // Only machines that the caller may see make a name ambiguous.
    place.machine_group("lab", "lab", &[]).await;
    let tag = json!({"Value": "twin", "Action": "Add"});
    place.client.post(&format!("/api/machines/{}/tags", twin.id), &tag).await.expect_status(200);
    let rule = json!([{"property": "tag", "operator": "equals", "value": "twin"}]);
    let group = json!({"name": "twins", "rank": 1, "rule": rule});
    place.client.put("/api/cordon/v1/machineGroups/twins", &group).await.expect_status(200);
    let app = json!({
        "name": "limited", "permissions": ["Machine.RestrictExecution"], "machineGroups": ["twins"],
    });
    let app = place.client.post("/api/cordon/v1/apps", &app).await.expect_status(201);
    let limited = place.server.login(id(&app), app["secret"].as_str().unwrap()).await;
    assert_eq!(limited.restrict("lab-042").await.expect_status(201)["machineId"], twin.id);
}

#[tokio::test]
async fn s1_content_type() {
    let place = Place::start().await;
    let (path, body) = (restrict(&place), "{\"Comment\": \"x\"}");
    for other in [None, Some("text/plain"), Some("application/x-www-form-urlencoded")] {
        let message = place.client.post_raw(&path, other, body).await.expect_error(400, "InvalidRequestBody");
        assert!(message.contains("Content-Type") && message.contains("application/json"), "{message}");
    }
    place.client.post_raw(&path, Some("application/json; charset=utf-8"), body).await.expect_status(201);
}

#[tokio::test]
async fn s1_malformed_body() {
    let place = Place::start().await;
    for body in [
        "",
        "{",
        "[]",
        "\"x\"",
        "null",
        "{\"Comment\": 5}",
        "{\"COMMENT\": \"x\"}",
        "{\"externalId\": \"x\"}",
    ] {
        let reply = place.client.post_raw(&restrict(&place), Some("application/json"), body).await;
        reply.expect_error(400, "InvalidRequestBody");
    }
}

#[tokio::test]
async fn s1_comment_missing() {
    let place = Place::start().await;
    for body in
        [json!({}), json!({"Comment": null}), json!({"Comment": ""}), json!({"Comment": " \t\u{2003}"})]
    {
        let reply = place.client.post(&restrict(&place), &body).await;
        assert_eq!(reply.expect_error(400, "MissingRequiredParameter"), "Parameter Comment is missing");
    }
}

#[tokio::test]
async fn s1_comment_too_long() {
    let place = Place::start().await;
    let comment = |length| json!({"Comment": "ü".repeat(length)});
    place.client.post(&restrict(&place), &comment(4001)).await.expect_error(400, "InvalidInput");
    place.client.post(&restrict(&place), &comment(4000)).await.expect_status(201);
}

#[tokio::test]
async fn s1_unknown_keys() {
    let place = Place::start().await;
    let body = json!({"Comment": "x", "IsolationType": "Full", "extra": [1, {"a": null}]});
    place.client.post(&restrict(&place), &body).await.expect_status(201);
}

#[tokio::test]
async fn s1_external_id() {
    let place = Place::start().await;
    let body = |length| json!({"Comment": "x", "ExternalId": "ü".repeat(length)});
    place.client.post(&restrict(&place), &body(257)).await.expect_error(400, "InvalidInput");
    let action = place.client.post(&restrict(&place), &body(256)).await.expect_status(201);
    assert_eq!(action["externalId"], "ü".repeat(256));
}

#[tokio::test]
async fn s1_expires_in() {
    let place = Place::start().await;
    let body = |expires_in: &str| json!({"Comment": "x", "ExpiresIn": expires_in});
    for bad in ["", "4h", "PT", "P1M", "PT59S", "P366D", "PT1.5H"] {
        place.client.post(&restrict(&place), &body(bad)).await.expect_error(400, "InvalidInput");
    }
    let unrestrict = place.client.post(&place.path("/unrestrictCodeExecution"), &body("PT4H")).await;
    unrestrict.expect_error(400, "InvalidInput");
    let _connection = place.online().await;
    let action = place.client.post(&restrict(&place), &body("PT4H")).await.expect_status(201);
    place.client.wait_for(&action, "Succeeded").await;
    // The machine ends it by itself; what the server does when the time has come is tested elsewhere.
    let ends_at = &place.client.machine(&place.machine.id).await["executionRestriction"]["endsAt"];
    assert!(is_time(ends_at) && ends_at.as_str() > action["creationDateTimeUtc"].as_str(), "{ends_at}");
    let action = place.client.unrestrict(&place.machine.id).await.expect_status(201);
    place.client.wait_for(&action, "Succeeded").await;
    assert!(place.client.machine(&place.machine.id).await["executionRestriction"]["endsAt"].is_null());
}

#[tokio::test]
async fn s1_policy() {
    let place = Place::start().await;
    for policy in ["strict", "office"] {
        let document = json!({"name": policy, "profile": "os-only", "rules": []});
        place.client.put(&format!("/api/cordon/v1/policies/{policy}"), &document).await.expect_status(200);
    }
    let rule = json!([{"property": "name", "operator": "equals", "value": "office-1"}]);
    let group = json!({"name": "office", "rule": rule, "policy": "office"});
    place.client.put("/api/cordon/v1/machineGroups/office", &group).await.expect_status(200);
    let office = Machine::enroll(&place.server, "office-1").await;
    let unknown = json!({"Comment": "x", "Policy": "nothing"});
    let message = place.client.post(&restrict(&place), &unknown).await.expect_error(400, "InvalidInput");
    assert!(message.contains("nothing"), "{message}");
    for (machine, body, policy) in [
        (&place.machine, json!({"Comment": "x"}), "default"),
        (&office, json!({"Comment": "x"}), "office"),
        (&place.machine, json!({"Comment": "x", "Policy": "strict"}), "strict"),
        (&office, json!({"Comment": "x", "Policy": "strict"}), "strict"),
    ] {
        place.client.unrestrict(&machine.id).await.expect_status(201);
        let path = format!("/api/machines/{}/restrictCodeExecution", machine.id);
        place.client.post(&path, &body).await.expect_status(201);
        let restriction = &place.client.machine(&machine.id).await["executionRestriction"];
        assert_eq!((&restriction["desired"], &restriction["policy"]), (&json!("Restricted"), &json!(policy)));
    }
}

#[tokio::test]
async fn s1_same_kind_active() {
    let place = Place::start().await;
    let action = place.restricted().await;
    let message =
        place.client.restrict(&place.machine.id).await.expect_error(400, "ActiveRequestAlreadyExists");
    assert!(
        message.starts_with("Action is already in progress") && message.contains(id(&action)),
        "{message}"
    );
    // In progress it is active too.
    let _connection = place.machine.connect(&place.server, Behavior::AcceptOnly).await;
    place.client.wait_for(&action, "InProgress").await;
    place.client.restrict(&place.machine.id).await.expect_error(400, "ActiveRequestAlreadyExists");
}

#[tokio::test]
async fn s1_idempotency_key() {
    let place = Place::start().await;
    let (key, body) = (("Idempotency-Key", "IR-20771/1"), json!({"Comment": "x"}));
    let first = post_with(&place, key, &body).await.expect_status(201);
    assert_eq!(post_with(&place, key, &body).await.expect_status(201), first);
    // Also when it is final, and then as it was.
    let _connection = place.online().await;
    place.client.wait_for(&first, "Succeeded").await;
    assert_eq!(post_with(&place, key, &body).await.expect_status(201), first);
    assert_eq!(place.client.get("/api/machineactions/$count").await.text, "1");
    let message = post_with(&place, key, &json!({"Comment": "y"})).await.expect_error(400, "InvalidInput");
    assert!(message.contains(id(&first)), "{message}");
}

#[tokio::test]
async fn s1_opposite_kind_active() {
    let place = Place::start().await;
    let older = place.restricted().await;
    let newer = place.client.unrestrict(&place.machine.id).await.expect_status(201);
    let older = place.client.action(id(&older)).await;
    assert_eq!(older["status"], "Cancelled");
    assert!(older["cancellationComment"].as_str().unwrap().contains(id(&newer)), "{older}");
    let newest = place.restricted().await;
    assert_eq!(place.client.action(id(&newer)).await["status"], "Cancelled");
    let _connection = place.online().await;
    place.client.wait_for(&newest, "Succeeded").await;
    assert!(place.machine.is_restricted());
}

#[tokio::test]
async fn s1_already_restricted() {
    let place = Place::start().await;
    let connection = place.online().await;
    let mut made = std::collections::BTreeSet::new();
    for restricted in [false, true, true, false, false] {
        let target = &place.machine.id;
        let reply = if restricted {
            place.client.restrict(target).await
        } else {
            place.client.unrestrict(target).await
        };
        let action = reply.expect_status(201);
        place.client.wait_for(&action, "Succeeded").await;
        assert_eq!(place.machine.is_restricted(), restricted);
        assert!(made.insert(id(&action).to_owned()), "a new action each time");
    }
    assert_eq!(connection.ordered(), made);
}

#[tokio::test]
async fn s1_preflight() {
    let place = Place::start().await;
    let windows = Description { os_platform: "Windows11".to_owned(), ..Description::named("win-1") };
    let why = "the kernel has no fanotify permission events";
    let weak = Description { tier: None, tier_note: why.to_owned(), ..Description::named("old-1") };
    for (description, code, says) in
        [(windows, "OsPlatformNotSupported", "Windows11"), (weak, "ClientVersionNotSupported", why)]
    {
        let machine = Machine::enroll_described(&place.server, description).await;
        let _connection = machine.connect(&place.server, Behavior::Obey).await;
        let message = place.client.restrict(&machine.id).await.expect_error(400, code);
        assert!(message.contains(says), "{message}");
    }
    assert_eq!(place.client.get("/api/machineactions/$count").await.text, "0");
}

#[tokio::test]
async fn s1_prefer_wait() {
    let place = Place::start().await;
    let (wait, body) = (("Prefer", "wait=30"), json!({"Comment": "x"}));
    let connection = place.online().await;
    let reply = post_with(&place, wait, &body).await;
    assert_eq!((reply.status, &reply.body["status"]), (201, &json!("Succeeded")), "{}", reply.text);
    assert_eq!(reply.headers["preference-applied"], "wait=30");
    // A machine that says nothing: the wait ends.
    drop(connection);
    let reply = post_with(&place, ("Prefer", "wait=1"), &body).await;
    assert_eq!((reply.status, &reply.body["status"]), (201, &json!("Pending")), "{}", reply.text);
    // What ends the action ends the wait.
    place.client.unrestrict(&place.machine.id).await.expect_status(201);
    let waiting = post_with(&place, wait, &body);
    let cancel = async {
        wait_until("the action is there", async || {
            place.client.get("/api/machineactions?$top=1").await.body["value"][0]["type"]
                == "RestrictCodeExecution"
        })
        .await;
        place.client.unrestrict(&place.machine.id).await.expect_status(201);
    };
    let (reply, ()) = tokio::join!(waiting, cancel);
    assert_eq!((reply.status, &reply.body["status"]), (201, &json!("Cancelled")), "{}", reply.text);
}
