//! Who may call what: every route, by every kind of caller, as one text that people review.
//!
//! The text is `snapshots/permission_matrix.txt`. After a change that was meant, write it anew with
//! `CORDON_UPDATE_SNAPSHOTS=1 cargo test -p server --test integration permission_matrix`.

use std::fmt::Write as _;
use std::path::Path;

use cordon_server::router::ROUTES;
use domain::permission::{Permission, Right};

use crate::harness::client::Client;
use crate::harness::server::TestServer;
use crate::routes::call;

const SNAPSHOT: &str = "tests/integration/snapshots/permission_matrix.txt";

const HEAD: &str = "\
Who may call what. x is allowed, . is forbidden (403). A test keeps this true; see permission_matrix.rs.

app     an application that holds one permission
right   a person with every scope, whose roles hold one right
scope   a person with every right, whose token has one scope
none    a person with every scope and no role

app                             right                               scope
R  Machine.Read.All             V  View data                        R  Machine.Read
W  Machine.ReadWrite.All        A  Active remediation actions       W  Machine.ReadWrite
X  Machine.RestrictExecution    I  Alerts investigation             X  Machine.RestrictExecution
B  Cordon.BulkRemediation       S  Manage security settings         B  Cordon.BulkRemediation
G  Cordon.BreakGlass            P  Manage portal system settings    G  Cordon.BreakGlass
C  Cordon.Administer            B  Bulk remediation                 C  Cordon.Administer
                                G  Break-glass codes

";

#[tokio::test]
async fn permission_matrix() {
    let server = TestServer::with_people().await;
    let mut apps = Vec::new();
    for permission in Permission::ALL {
        apps.push(server.client(&[permission]).await);
    }
    let mut rights = Vec::new();
    for (number, right) in Right::ALL.into_iter().enumerate() {
        let (name, group) = (format!("person-{number}"), format!("group-{number}"));
        server.role(&format!("role-{number}"), &[right], &[&group]).await;
        server.account(&name, &[&group]).await;
        rights.push(server.sign_in(&name, &Permission::ALL).await);
    }
    server.role("everything", &Right::ALL, &["everything"]).await;
    server.account("everything", &["everything"]).await;
    let mut scopes = Vec::new();
    for scope in Permission::ALL {
        scopes.push(server.sign_in("everything", &[scope]).await);
    }
    server.account("nobody", &["nothing"]).await;
    let none = [server.sign_in("nobody", &Permission::ALL).await];

    let mut matrix = HEAD.to_owned();
    writeln!(matrix, "{:70} app          right          scope        none", "").unwrap();
    writeln!(matrix, "{:70} R W X B G C  V A I S P B G  R W X B G C", "").unwrap();
    for route in ROUTES.iter() {
        let mut line = format!("{:6} {:62}", route.method.as_str(), route.path);
        for clients in [&apps[..], &rights, &scopes, &none] {
            line += " ";
            for client in clients {
                line += if is_allowed(client, route).await { " x" } else { " ." };
            }
        }
        writeln!(matrix, "{line}").unwrap();
    }
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(SNAPSHOT);
    if std::env::var_os("CORDON_UPDATE_SNAPSHOTS").is_some() {
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(&file, &matrix).unwrap();
    }
    let reviewed = std::fs::read_to_string(&file).unwrap_or_default();
    let differing: Vec<_> =
        matrix.lines().filter(|line| !reviewed.lines().any(|other| other == *line)).collect();
    assert!(matrix == reviewed, "{SNAPSHOT} says otherwise; now there is:\n{}", differing.join("\n"));
}

/// Whether a caller passes the gate of a route. What it asks for names nothing, and has no body.
async fn is_allowed(client: &Client, route: &cordon_server::router::Route) -> bool {
    let reply = call(client, route).await;
    assert_ne!(reply.status, 401, "{route:?}: {}", reply.text);
    reply.body["error"]["code"] != "Forbidden"
}
