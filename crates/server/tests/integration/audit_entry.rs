//! The audit log: who did what, from first to last.

use serde_json::json;

use crate::harness::machine::Machine;
use crate::harness::server::TestServer;

const ENTRIES: &str = "/api/cordon/v1/auditEntries";

#[tokio::test]
async fn one_action_is_told_from_call_to_proof() {
    let server = TestServer::start().await;
    let client = server.admin();
    let (machine, _connection) = Machine::online(&server, "lab-042").await;
    let action = client.restrict(&machine.id).await.expect_status(201);
    client.wait_for(&action, "Succeeded").await;
    let entries = client.get(ENTRIES).await.expect_status(200);
    let told: Vec<_> = entries["value"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|entry| entry["subject"] == machine.id)
        .map(|entry| (entry["operation"].as_str().unwrap(), entry["actor"].as_str().unwrap()))
        .collect();
    let machine_name = format!("machine {}", machine.id);
    assert_eq!(told[0], ("machine_action_succeed", machine_name.as_str()));
    assert_eq!(told[1], ("machine_restrict", client.app.as_str()));
    assert_eq!(told[2].0, "machine_enroll");
    let restrict = &entries["value"].as_array().unwrap()[1];
    assert!(restrict["detail"].as_str().unwrap().contains(action["id"].as_str().unwrap()));
}

#[tokio::test]
async fn what_is_refused_is_no_change_and_no_entry() {
    let server = TestServer::start().await;
    let client = server.admin();
    let machine = Machine::enroll(&server, "lab-042").await;
    client.restrict(&machine.id).await.expect_status(201);
    let before = client.get(ENTRIES).await.expect_status(200);
    client.restrict(&machine.id).await.expect_error(400, "ActiveRequestAlreadyExists");
    client.restrict("nowhere").await.expect_error(404, "ResourceNotFound");
    client
        .post("/api/cordon/v1/apps", &json!({"name": "x"}))
        .await
        .expect_error(400, "MissingRequiredParameter");
    assert_eq!(client.get(ENTRIES).await.expect_status(200), before);
}

#[tokio::test]
async fn the_log_is_read_backward_page_by_page() {
    let server = TestServer::start().await;
    let client = server.admin();
    for n in 0..5 {
        Machine::enroll(&server, &format!("lab-{n}")).await;
    }
    let whole = client.get(&format!("{ENTRIES}?top=1000")).await.expect_status(200);
    let whole = whole["value"].as_array().unwrap();
    assert!(whole.is_sorted_by(|a, b| a["id"].as_i64() > b["id"].as_i64()));
    let (mut paged, mut next) = (Vec::new(), Some(format!("{ENTRIES}?top=2")));
    while let Some(path) = next {
        let page = client.get(&path).await.expect_status(200);
        paged.extend(page["value"].as_array().unwrap().clone());
        next = page["@odata.nextLink"].as_str().map(str::to_owned);
    }
    assert_eq!(&paged, whole);
    client.get(&format!("{ENTRIES}?machineId=x")).await.expect_error(400, "InvalidInput");
}
