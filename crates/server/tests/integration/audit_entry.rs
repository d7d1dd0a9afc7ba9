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

#[tokio::test]
async fn the_log_is_filtered() {
    let server = TestServer::start().await;
    let client = server.admin();
    let first = Machine::enroll(&server, "lab-1").await;
    let second = Machine::enroll(&server, "lab-2").await;
    for machine in [&first, &second] {
        client.restrict(&machine.id).await.expect_status(201);
    }
    let ids = async |query: &str| {
        let list = client.get(&format!("{ENTRIES}?{query}")).await.expect_status(200);
        let entries = list["value"].as_array().unwrap().clone();
        entries
            .into_iter()
            .map(|entry| (entry["operation"].clone(), entry["subject"].clone()))
            .collect::<Vec<_>>()
    };
    let restricted = |machine: &Machine| (json!("machine_restrict"), json!(machine.id));
    assert_eq!(ids("operation=machine_restrict").await, [restricted(&second), restricted(&first)]);
    let path = format!("subject={}&operation=machine_restrict", first.id);
    assert_eq!(ids(&path).await, [restricted(&first)]);
    assert_eq!(ids(&format!("actor={}&top=1", client.app)).await, [restricted(&second)]);
    assert_eq!(ids("actor=nobody").await, []);
    assert_eq!(ids("until=2026-01-01T00:00:00Z").await, []);
    assert_eq!(ids("since=9000-01-01T00:00:00Z").await, []);
    assert_eq!(ids("since=2026-01-01T00:00:00Z&operation=machine_restrict").await.len(), 2);
    for query in ["top=0", "top=1001", "before=x", "since=yesterday", "user=x", "actor=a&actor=b"] {
        client.get(&format!("{ENTRIES}?{query}")).await.expect_error(400, "InvalidInput");
    }
}

#[tokio::test]
async fn an_export_is_the_whole_log() {
    let server = TestServer::start().await;
    let client = server.admin();
    let machine = Machine::enroll(&server, "lab-042").await;
    let comment = json!({"Comment": "a \"quoted\", long\nstory"});
    let path = format!("/api/machines/{}/restrictCodeExecution", machine.id);
    client.post(&path, &comment).await.expect_status(201);
    let list = client.get(&format!("{ENTRIES}?top=1000")).await.expect_status(200);
    let whole = list["value"].as_array().unwrap();
    for query in ["", "?format=jsonl"] {
        let export = client.get(&format!("{ENTRIES}/export{query}")).await;
        assert_eq!(
            (export.status, &export.headers["content-type"]),
            (200, &"application/jsonl".parse().unwrap())
        );
        let lines: Vec<serde_json::Value> =
            export.text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(&lines, whole);
    }
    let export = client.get(&format!("{ENTRIES}/export?format=csv")).await;
    assert_eq!(export.headers["content-type"], "text/csv; charset=utf-8; header=present");
    assert_eq!(export.headers["content-disposition"], "attachment; filename=\"audit.csv\"");
    let lines: Vec<_> = export.text.split("\r\n").collect();
    assert_eq!(lines[0], "id,dateTimeUtc,actor,operation,subject,detail");
    assert_eq!((lines.len(), lines.last()), (whole.len() + 2, Some(&"")));
    let newest = &whole[0];
    let expected = format!(
        "{},{},\"{}\",\"machine_restrict\",\"{}\",\"{}\"",
        newest["id"],
        newest["dateTimeUtc"].as_str().unwrap(),
        client.app,
        machine.id,
        newest["detail"].as_str().unwrap().replace('"', "\"\"")
    );
    assert_eq!(lines[1], expected);
    let some = client.get(&format!("{ENTRIES}/export?operation=machine_restrict")).await;
    assert_eq!(some.text.lines().count(), 1);
    let none = client.get(&format!("{ENTRIES}/export?format=csv&actor=nobody")).await;
    assert_eq!((none.status, none.text.as_str()), (200, "id,dateTimeUtc,actor,operation,subject,detail\r\n"));
    let none = client.get(&format!("{ENTRIES}/export?actor=nobody")).await;
    assert_eq!((none.status, none.text.as_str()), (200, ""));
    for query in ["format=xml", "top=5", "since=x"] {
        client.get(&format!("{ENTRIES}/export?{query}")).await.expect_error(400, "InvalidInput");
    }
}

#[tokio::test]
async fn an_export_of_more_than_one_batch_leaves_nothing_out() {
    let server = TestServer::start().await;
    let client = server.admin();
    let entries: Vec<_> = (0..2500)
        .map(|number| domain::audit_entry::AuditEntry {
            at: domain::time::Timestamp::from_unix_seconds(1_800_000_000),
            actor: "bulk".to_owned(),
            operation: "test".to_owned(),
            subject: number.to_string(),
            detail: "=1+1".to_owned(),
        })
        .collect();
    let write = move |tx: &store::Tx<'_>| store::audit_entry::audit_entry_create_many(tx, &entries);
    server.store().write::<_, store::StoreError>(write).await.unwrap();
    let export = client.get(&format!("{ENTRIES}/export?actor=bulk")).await;
    let subjects: Vec<usize> = export
        .text
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
        .map(|entry| entry["subject"].as_str().unwrap().parse().unwrap())
        .collect();
    assert!(subjects.into_iter().eq((0..2500).rev()));
    let csv = client.get(&format!("{ENTRIES}/export?actor=bulk&format=csv")).await.text;
    assert_eq!(csv.matches("\r\n").count(), 2501);
    // No spreadsheet takes a detail for a formula.
    assert!(csv.contains("\"'=1+1\"") && !csv.contains("\"=1+1\""));
}
