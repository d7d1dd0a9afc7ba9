//! Section 5: permissions, roles, machine groups.

use domain::permission::Permission;
use serde_json::{Value, json};

use super::{NOWHERE, Place, id, ids};
use crate::harness::client::{Client, Reply};
use crate::harness::machine::Machine;

const RESTRICT: &[&str] = &["Machine.Read", "Machine.RestrictExecution"];
const GROUPS: &str = "/api/cordon/v1/machineGroups";

/// The two machines are in groups of their own: `lab-042` in `lab`, `office-1` in `office`.
async fn grouped(place: &Place, lab: &[&str], office: &[&str]) -> Machine {
    let machine = Machine::enroll(&place.server, "office-1").await;
    place.machine_group("lab", "lab", lab).await;
    place.machine_group("office", "office", office).await;
    machine
}

/// The name of the group that a machine is in.
async fn group_of(place: &Place, machine: &str) -> String {
    place.client.machine(machine).await["rbacGroupName"].as_str().unwrap().to_owned()
}

/// An error without the id of its request, which is never the same.
fn bytes(reply: &Reply, target: &str) -> (u16, String) {
    let error = reply.body["error"]["target"].as_str().unwrap();
    (reply.status, reply.text.replace(error, "").replace(target, ""))
}

#[tokio::test]
async fn s5_permission_strings() {
    let place = Place::with_people().await;
    place
        .role("all", &["View data", "Active remediation actions", "Manage security settings"], &["soc"])
        .await;
    place.account("ann", &["soc"]).await;
    let tag = json!({"Value": "x", "Action": "Add"});
    for (name, scope, reads, tags, restricts) in [
        (Permission::MachineReadAll, "Machine.Read", true, false, false),
        (Permission::MachineReadWriteAll, "Machine.ReadWrite", true, true, false),
        (Permission::MachineRestrictExecution, "Machine.RestrictExecution", false, false, true),
    ] {
        for client in [place.server.client(&[name]).await, place.sign_in("ann", &[scope]).await] {
            let expect = |reply: Reply, granted: bool| assert_eq!(reply.status != 403, granted, "{scope}");
            expect(client.get("/api/machines").await, reads);
            expect(client.get("/api/machineactions").await, reads);
            expect(client.post(&place.path("/tags"), &tag).await, tags);
            expect(client.restrict(&place.machine.id).await, restricts);
        }
    }
}

#[tokio::test]
async fn s5_message_of_403() {
    let place = Place::with_people().await;
    let app = place.server.client(&[Permission::MachineReadAll, Permission::MachineReadWriteAll]).await;
    let message = app.restrict(&place.machine.id).await.expect_error(403, "Forbidden");
    let expected = "Missing application roles. API required roles: Machine.RestrictExecution, \
                    application roles: Machine.Read.All,Machine.ReadWrite.All.";
    assert_eq!(message, expected);
    place.role("all", &["Active remediation actions"], &["soc"]).await;
    place.account("ann", &["soc"]).await;
    let ann = place.sign_in("ann", &["Machine.Read"]).await;
    let message = ann.restrict(&place.machine.id).await.expect_error(403, "Forbidden");
    let expected = "Missing application scopes. API required scopes: Machine.RestrictExecution, \
                    application scopes: Machine.Read.";
    assert_eq!(message, expected);
}

#[tokio::test]
async fn s5_three_conditions() {
    let place = Place::with_people().await;
    let office = grouped(&place, &["soc"], &["other"]).await;
    place.role("responder", &["Active remediation actions", "View data"], &["soc"]).await;
    place.account("ann", &["soc"]).await;
    place.account("eve", &[]).await;
    let ann = place.sign_in("ann", RESTRICT).await;
    ann.restrict(&place.machine.id).await.expect_status(201);
    let no_scope = place.sign_in("ann", &["Machine.Read"]).await;
    no_scope.restrict(&place.machine.id).await.expect_error(403, "Forbidden");
    let no_right = place.sign_in("eve", RESTRICT).await;
    no_right.restrict(&place.machine.id).await.expect_error(403, "Forbidden");
    ann.restrict(&office.id).await.expect_error(404, "ResourceNotFound");
}

#[tokio::test]
async fn s5_roles() {
    let place = Place::with_people().await;
    place.account("ann", &["soc"]).await;
    let ann =
        place.sign_in("ann", &["Machine.ReadWrite", "Machine.RestrictExecution", "Cordon.Administer"]).await;
    let tag = json!({"Value": "x", "Action": "Add"});
    for right in [
        "View data",
        "Active remediation actions",
        "Alerts investigation",
        "Manage security settings",
        "Manage portal system settings",
    ] {
        // What a role allows holds for tokens that are out.
        place.role("soc", &[right], &["soc"]).await;
        for (reply, needs) in [
            (ann.get("/api/machines").await, "View data"),
            (ann.restrict(NOWHERE).await, "Active remediation actions"),
            (ann.post(&place.path("/tags"), &tag).await, "Manage security settings"),
            (ann.get("/api/cordon/v1/enrollmentTokens").await, "Manage security settings"),
            (ann.get("/api/cordon/v1/roles").await, "Manage portal system settings"),
        ] {
            if right == needs {
                assert_ne!(reply.status, 403, "{right}: {}", reply.text);
            } else {
                let message = reply.expect_error(403, "Forbidden");
                assert!(message.contains(needs), "{right}: {message}");
            }
        }
    }
    place.role("soc", &["View data"], &["others"]).await;
    ann.get("/api/machines").await.expect_error(403, "Forbidden");
}

#[tokio::test]
async fn s5_administrator() {
    let place = Place::with_people().await;
    let office = grouped(&place, &["soc"], &["others"]).await;
    let role = place.client.get("/api/cordon/v1/roles/Administrator").await.expect_status(200);
    let role = json!({"name": "Administrator", "rights": role["rights"], "userGroups": ["admins"]});
    place.client.put("/api/cordon/v1/roles/Administrator", &role).await.expect_status(200);
    place.account("root", &["admins"]).await;
    let root = place.sign_in("root", RESTRICT).await;
    assert_eq!(ids(&root, "/api/machines").await.len(), 2);
    root.restrict(&office.id).await.expect_status(201);
    let reply = place.client.delete("/api/cordon/v1/roles/Administrator").await;
    reply.expect_error(403, "DisallowedOperation");
}

#[tokio::test]
async fn s5_rank_and_rules() {
    let place = Place::start().await;
    let condition = |property: &str, operator: &str, value: &str| {
        let condition = [("property", property), ("operator", operator), ("value", value)];
        json!(std::collections::BTreeMap::from(condition))
    };
    let save = async |name: &str, rank: u32, rule: Vec<Value>| {
        let group = json!({"name": name, "rank": rank, "rule": rule});
        place.client.put(&format!("{GROUPS}/{name}"), &group).await.expect_status(200)
    };
    let domain = Machine::enroll(&place.server, "web-1.example.org").await;
    // Alternatives inside a property, all properties together.
    let names = vec![condition("name", "equals", "lab-042"), condition("name", "startsWith", "web")];
    save("servers", 1, names.clone()).await;
    assert_eq!(group_of(&place, &place.machine.id).await, "servers");
    assert_eq!(group_of(&place, &domain.id).await, "servers");
    let narrow =
        [names, vec![condition("domain", "endsWith", ".org"), condition("osPlatform", "equals", "Linux")]];
    save("narrow", 1, narrow.concat()).await;
    // It has never connected: its platform is not known.
    assert_eq!(group_of(&place, &domain.id).await, "servers");
    let _connection = domain.connect(&place.server, crate::harness::machine::Behavior::Obey).await;
    assert_eq!(group_of(&place, &domain.id).await, "narrow");
    assert_eq!(group_of(&place, &place.machine.id).await, "servers");
    // 1 is the highest, and a machine is in one group.
    save("tagged", 1, vec![condition("tag", "contains", "prod")]).await;
    let tag = json!({"Value": "production", "Action": "Add"});
    place.client.post(&format!("/api/machines/{}/tags", domain.id), &tag).await.expect_status(200);
    assert_eq!(group_of(&place, &domain.id).await, "tagged");
    save("tagged", 3, vec![condition("tag", "contains", "prod")]).await;
    assert_eq!(group_of(&place, &domain.id).await, "narrow");
    let list = place.client.get(GROUPS).await.expect_status(200);
    let names: Vec<_> =
        list["value"].as_array().unwrap().iter().map(|group| group["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["narrow", "servers", "tagged", "Ungrouped machines (default)"]);
}

#[tokio::test]
async fn s5_ungrouped() {
    let place = Place::start().await;
    assert_eq!(group_of(&place, &place.machine.id).await, "Ungrouped machines (default)");
    let path = format!("{GROUPS}/Ungrouped machines (default)");
    assert_eq!(place.client.get(&path).await.expect_status(200)["rank"], Value::Null);
    place.client.delete(&path).await.expect_error(403, "DisallowedOperation");
    let ranked = json!({"name": "Ungrouped machines (default)", "rank": 1});
    place.client.put(&path, &ranked).await.expect_error(403, "DisallowedOperation");
    place.machine_group("lab", "lab", &[]).await;
    assert_eq!(group_of(&place, &place.machine.id).await, "lab");
    assert_eq!(place.client.delete(&format!("{GROUPS}/lab")).await.status, 204);
    assert_eq!(group_of(&place, &place.machine.id).await, "Ungrouped machines (default)");
}

#[tokio::test]
async fn s5_user_groups_of_a_group() {
    let place = Place::with_people().await;
    place.role("reader", &["View data"], &["staff"]).await;
    place.account("ann", &["staff"]).await;
    place.account("eve", &["guests"]).await;
    let (ann, eve) = (place.sign_in("ann", RESTRICT).await, place.sign_in("eve", RESTRICT).await);
    place.machine_group("lab", "lab", &[]).await;
    assert_eq!(ids(&ann, "/api/machines").await.len(), 1, "open to everybody with a role");
    eve.get("/api/machines").await.expect_error(403, "Forbidden");
    place.machine_group("lab", "lab", &["soc"]).await;
    assert!(ids(&ann, "/api/machines").await.is_empty(), "closed to others");
    place.machine_group("lab", "lab", &["soc", "staff"]).await;
    assert_eq!(ids(&ann, "/api/machines").await.len(), 1);
}

#[tokio::test]
async fn s5_groups_of_applications() {
    let place = Place::start().await;
    let office = grouped(&place, &["nobody"], &["nobody"]).await;
    let everywhere = place.server.client(&Permission::ALL).await;
    assert_eq!(ids(&everywhere, "/api/machines").await.len(), 2, "no group binds an application");
    let app = json!({
        "name": "limited", "permissions": ["Machine.Read.All", "Machine.RestrictExecution"],
        "machineGroups": ["office"],
    });
    let app = place.client.post("/api/cordon/v1/apps", &app).await.expect_status(201);
    let limited = place.server.login(id(&app), app["secret"].as_str().unwrap()).await;
    assert_eq!(ids(&limited, "/api/machines").await, [office.id.as_str()]);
    limited.restrict(&office.id).await.expect_status(201);
    limited.restrict(&place.machine.id).await.expect_error(404, "ResourceNotFound");
}

#[tokio::test]
async fn s5_outside_the_group() {
    let place = Place::with_people().await;
    let office = grouped(&place, &["soc"], &["others"]).await;
    place
        .role("responder", &["Active remediation actions", "View data", "Manage security settings"], &["soc"])
        .await;
    place.account("ann", &["soc"]).await;
    let ann = place.sign_in("ann", &["Machine.ReadWrite", "Machine.RestrictExecution"]).await;
    let seen = ann.restrict(&place.machine.id).await.expect_status(201);
    let hidden = place.client.restrict(&office.id).await.expect_status(201);

    assert_eq!(ids(&ann, "/api/machines").await, [place.machine.id.as_str()]);
    assert_eq!(ids(&ann, "/api/machineactions").await, [id(&seen)]);
    assert_eq!(ann.get("/api/machines/$count").await.text, "1");
    assert_eq!(ann.get("/api/machineactions/$count").await.text, "1");
    let by_id = format!("/api/machineactions?$filter=machineId eq '{}'", office.id);
    assert!(ids(&ann, &by_id).await.is_empty());

    let tag = json!({"Value": "x", "Action": "Add"});
    let machine = async |client: &Client, target: &str| {
        let path = |rest: &str| format!("/api/machines/{target}{rest}");
        [
            client.get(&path("")).await,
            client.get(&path("/machineactions")).await,
            client.get(&path("/availableMachineActions")).await,
            client.post(&path("/tags"), &tag).await,
            client.restrict(target).await,
            client.unrestrict(target).await,
        ]
        .map(|reply| bytes(&reply, target))
    };
    let unknown = machine(&ann, NOWHERE).await;
    assert!(unknown.iter().all(|(status, text)| *status == 404 && text.contains("ResourceNotFound")));
    assert_eq!(machine(&ann, &office.id).await, unknown);
    assert_eq!(machine(&ann, "office-1").await, unknown);
    let action = async |target: &str| {
        let path = format!("/api/machineactions/{target}");
        let receipt = format!("/api/cordon/v1/machineactions/{target}/receipt");
        [
            ann.get(&path).await,
            ann.get(&receipt).await,
            ann.post(&format!("{path}/cancel"), &json!({"Comment": "x"})).await,
        ]
        .map(|reply| bytes(&reply, target))
    };
    let unknown = action("00000000-0000-0000-0000-000000000000").await;
    assert!(unknown.iter().all(|(status, _)| *status == 404));
    assert_eq!(action(id(&hidden)).await, unknown);
    assert_eq!(place.client.action(id(&hidden)).await["status"], "Pending");
}

#[tokio::test]
async fn s5_admin_api() {
    let place = Place::start().await;
    let reader = place.server.client(&[Permission::MachineReadAll]).await;
    for set in [
        "apps",
        "users",
        "roles",
        "machineGroups",
        "enrollmentTokens",
        "policies",
        "settings",
        "auditEntries",
        "executionEvents",
    ] {
        let path = format!("/api/cordon/v1/{set}");
        assert!(place.client.get(&path).await.expect_status(200)["value"].is_array(), "{set}");
        let reply = reader.get(&path).await;
        assert_eq!(
            reply.status,
            if ["policies", "executionEvents"].contains(&set) { 200 } else { 403 },
            "{set}"
        );
        place.client.get(&format!("/api/{set}")).await.expect_error(404, "NotFound");
    }
}
