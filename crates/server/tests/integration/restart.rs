//! The program, stopped in the middle of things: what was accepted is there again, and converges.

use rustix::process::Signal;

use crate::harness::machine::{Behavior, Machine};
use crate::harness::server::TestServer;

#[tokio::test]
async fn an_order_that_is_open_at_sigterm_is_carried_out_after_the_next_start() {
    let mut server = TestServer::start_process().await;
    let machine = Machine::enroll(&server, "lab-042").await;
    let connection = machine.connect(&server, Behavior::Silent).await;
    let action = server.admin().restrict(&machine.id).await.expect_status(201);
    let status = server.signal(Signal::TERM).await;
    assert!(status.success(), "{status}");
    // The server has closed the connection: machines come again by themselves.
    connection.closed().await;

    server.run_process().await;
    let client = server.admin();
    assert_eq!(client.action(action["id"].as_str().unwrap()).await["status"], "Pending");
    let _connection = machine.connect(&server, Behavior::Obey).await;
    client.wait_for(&action, "Succeeded").await;
    assert!(machine.is_restricted());
}

#[tokio::test]
async fn what_was_answered_survives_sigkill() {
    let mut server = TestServer::start_process().await;
    let mut made = Vec::new();
    for number in 0..20 {
        let machine = Machine::enroll(&server, &format!("lab-{number}")).await;
        made.push(server.admin().restrict(&machine.id).await.expect_status(201));
    }
    server.signal(Signal::KILL).await;
    server.run_process().await;
    for action in made {
        let mut found = server.admin().action(action["id"].as_str().unwrap()).await;
        found["@odata.context"] = action["@odata.context"].clone();
        assert_eq!(found, action);
    }
}

#[tokio::test]
async fn a_receipt_that_the_server_missed_is_taken_after_its_restart() {
    let mut server = TestServer::start().await;
    let machine = Machine::enroll(&server, "lab-042").await;
    let connection = machine.connect(&server, Behavior::AcceptOnly).await;
    let action = server.admin().restrict(&machine.id).await.expect_status(201);
    server.admin().wait_for(&action, "InProgress").await;
    server.stop().await;
    drop(connection);
    machine.finish_order();
    server.run().await;
    let _connection = machine.connect(&server, Behavior::Obey).await;
    server.admin().wait_for(&action, "Succeeded").await;
}
