//! Execution events: what machines refused, as the API tells it.

use serde_json::json;

use crate::harness::machine::Machine;
use crate::harness::server::TestServer;
use crate::harness::wait_until;

const EVENTS: &str = "/api/cordon/v1/executionEvents";

#[tokio::test]
async fn a_refused_execution_is_reported() {
    let server = TestServer::start().await;
    let client = server.admin();
    let (machine, connection) = Machine::online(&server, "lab-042").await;
    connection.report_execution("/tmp/unlisted");
    wait_until("the event is there", async || {
        client.get(EVENTS).await.expect_status(200)["value"].as_array().unwrap().len() == 1
    })
    .await;
    let list = client.get(EVENTS).await.expect_status(200);
    let expected = json!([{
        "id": list["value"][0]["id"],
        "machineId": machine.id,
        "computerDnsName": "lab-042",
        "eventDateTimeUtc": "2027-01-15T08:00:00.0000000Z",
        "path": "/tmp/unlisted",
        "sha256": "ab".repeat(32),
        "cause": "unlisted",
        "rule": null,
        "processId": 4242,
        "parentProcessId": 4241,
        "userId": 1000,
        "parentProgram": "/usr/bin/bash",
        "hook": "execute",
        "cgroup": null,
        "containerId": null,
        "interpreter": null,
        "script": null,
        "policy": null,
        "policyRevision": null,
        "audited": false,
        "count": 3,
    }]);
    assert_eq!(list["value"], expected);
}

#[tokio::test]
async fn events_are_read_backward_page_by_page() {
    let server = TestServer::start().await;
    let client = server.admin();
    let (machine, connection) = Machine::online(&server, "lab-042").await;
    let (other, other_connection) = Machine::online(&server, "lab-043").await;
    for n in 0..5 {
        connection.report_execution(&format!("/tmp/{n}"));
    }
    other_connection.report_execution("/tmp/other");
    wait_until("the events are there", async || {
        client.get(EVENTS).await.expect_status(200)["value"].as_array().unwrap().len() == 6
    })
    .await;
    for target in [machine.id.as_str(), "lab-042"] {
        let mut paths = Vec::new();
        let mut next = Some(format!("{EVENTS}?machineId={target}&top=2"));
        while let Some(path) = next {
            let page = client.get(&path).await.expect_status(200);
            let events = page["value"].as_array().unwrap();
            paths.extend(events.iter().map(|event| event["path"].as_str().unwrap().to_owned()));
            next = page["@odata.nextLink"].as_str().map(str::to_owned);
            assert_eq!(next.is_some(), events.len() == 2);
            assert!(next.as_ref().is_none_or(|link| link.starts_with(server.url())));
        }
        assert_eq!(paths, ["/tmp/4", "/tmp/3", "/tmp/2", "/tmp/1", "/tmp/0"]);
    }
    let list = client.get(&format!("{EVENTS}?machineId={}", other.id)).await.expect_status(200);
    assert_eq!(list["value"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn a_wrong_query_is_refused() {
    let server = TestServer::start().await;
    let client = server.admin();
    for query in ["top=0", "top=1001", "top=x", "before=x", "machineid=x", "nonsense=1", "top=1&top=2"] {
        client.get(&format!("{EVENTS}?{query}")).await.expect_error(400, "InvalidInput");
    }
    client.get(&format!("{EVENTS}?machineId=nowhere")).await.expect_error(404, "ResourceNotFound");
}
