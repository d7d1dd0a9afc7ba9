//! Apps, accounts, roles, machine groups, settings, enrollment tokens and the audit log.

use expect_test::expect;
use serde_json::json;

use crate::program::Program;
use crate::stand_in::{Answer, Call, StandIn};

const ID: &str = "b7a2f0de-31c4-4a77-9a0e-5d2f6c1e8843";

#[test]
fn an_app_is_made_listed_and_revoked() {
    let app = json!({
        "id": ID, "name": "soar", "permissions": ["Machine.Read.All", "Machine.RestrictExecution"],
        "public": false, "redirectUris": [], "machineGroupIds": null, "bulkMachinesMax": null,
        "creationDateTimeUtc": "2026-03-02T08:14:55Z", "revokedDateTimeUtc": null
    });
    let server = StandIn::start(move |call, _| {
        let mut created = app.clone();
        created["secret"] = "s3cret".into();
        match call {
            0 => Answer::created(&created),
            1 => Answer::ok(&json!({ "value": [app] })),
            _ => Answer::empty(),
        }
    });
    let program = Program::of(&server);
    let permissions = ["-p", "Machine.Read.All,Machine.RestrictExecution"];
    let created = program.run(&[&["app", "create", "soar"], &permissions[..]].concat());
    expect![[r#"
        client id      b7a2f0de-31c4-4a77-9a0e-5d2f6c1e8843
        client secret  s3cret
        name           soar
        permissions    Machine.Read.All, Machine.RestrictExecution
    "#]]
    .assert_eq(created.result());
    assert!(created.stderr.contains("shown this once"));
    expect![[r#"
        ID                                    NAME  REVOKED (UTC)  CREATED (UTC)        PERMISSIONS
        b7a2f0de-31c4-4a77-9a0e-5d2f6c1e8843  soar                 2026-03-02 08:14:55  Machine.Read.All, Machine.RestrictExecution
    "#]].assert_eq(program.run(&["app", "list"]).result());
    assert_eq!(program.run(&["app", "revoke", ID]).result(), format!("app {ID} is revoked\n"));
    assert_eq!(program.run(&["app", "revoke", ID, "-o", "json"]).result(), "");
    let calls = server.calls();
    assert_eq!(
        calls[0].body,
        r#"{"name":"soar","permissions":["Machine.Read.All","Machine.RestrictExecution"],"public":false,"redirectUris":[]}"#
    );
    assert_eq!(calls[2].line, format!("DELETE /api/cordon/v1/apps/{ID}"));
    assert_eq!(program.run(&["app", "create", "soar", "-p", "Everything"]).code, 2);
    assert_eq!(program.run(&["app", "create", "soar"]).code, 2);
}

#[test]
fn an_enrollment_token_is_made_listed_and_revoked() {
    let token = json!({
        "id": ID, "comment": "rack 7", "usesMax": 40, "uses": 2, "creationDateTimeUtc": "2026-03-02T08:14:55Z",
        "expiryDateTimeUtc": "2026-03-09T08:14:55Z", "revokedDateTimeUtc": null
    });
    let server = StandIn::start(move |call, _| {
        let mut created = token.clone();
        created["secret"] = "s3cret".into();
        created["command"] = "cordon-agent enroll --server URL --token s3cret --ca-pin 00".into();
        match call {
            0 => Answer::created(&created),
            1 => Answer::ok(&json!({ "value": [token] })),
            _ => Answer::empty(),
        }
    });
    let program = Program::of(&server);
    let options = ["--uses", "40", "--expires-in", "7d", "--comment", "rack 7"];
    let created = program.run(&[&["enrollment-token", "create"], &options[..]].concat());
    expect![[r#"
        id       b7a2f0de-31c4-4a77-9a0e-5d2f6c1e8843
        uses     40
        expires  2026-03-09T08:14:55.0000000Z
        comment  rack 7
        secret   s3cret
        command  cordon-agent enroll --server URL --token s3cret --ca-pin 00
    "#]]
    .assert_eq(created.result());
    assert!(created.stderr.contains("shown this once"));
    expect![[r#"
        ID                                    USED  EXPIRES (UTC)        REVOKED (UTC)  COMMENT
        b7a2f0de-31c4-4a77-9a0e-5d2f6c1e8843  2/40  2026-03-09 08:14:55                 rack 7
    "#]]
    .assert_eq(program.run(&["enrollment-token", "list"]).result());
    let revoked = program.run(&["enrollment-token", "revoke", ID]);
    assert_eq!(revoked.result(), format!("enrollment token {ID} is revoked\n"));
    let calls = server.calls();
    assert_eq!(calls[0].line, "POST /api/cordon/v1/enrollmentTokens");
    assert_eq!(calls[0].body, r#"{"usesMax":40,"expiresInSeconds":604800,"comment":"rack 7"}"#);
    assert_eq!(calls[2].line, format!("DELETE /api/cordon/v1/enrollmentTokens/{ID}"));
}

#[test]
fn what_is_not_given_of_an_app_stays() {
    let app = json!({
        "id": ID, "name": "soar", "permissions": ["Machine.Read.All"], "public": false,
        "redirectUris": ["https://soar.example/cb"], "machineGroupIds": [3], "bulkMachinesMax": 7,
        "creationDateTimeUtc": "2026-03-02T08:14:55Z", "revokedDateTimeUtc": null
    });
    let server = StandIn::start(move |_, call| {
        if call.line.ends_with("machineGroups") {
            return Answer::ok(&json!({ "value": [group("Finance", 3, Some(1))] }));
        }
        Answer::ok(&app)
    });
    let program = Program::of(&server);
    program.run(&["app", "update", ID, "--permission", "Machine.ReadWrite.All"]).result();
    program
        .run(&["app", "update", ID, "--all-machines", "--no-redirect-uri", "--bulk-machines-default"])
        .result();
    let bodies: Vec<_> = server
        .calls()
        .into_iter()
        .filter(|call| call.line.starts_with("PUT"))
        .map(|call| call.body)
        .collect();
    expect![[r#"
        {"name":"soar","permissions":["Machine.ReadWrite.All"],"public":false,"redirectUris":["https://soar.example/cb"],"machineGroups":["Finance"],"bulkMachinesMax":7}
        {"name":"soar","permissions":["Machine.Read.All"],"public":false,"redirectUris":[]}"#]]
    .assert_eq(&bodies.join("\n"));
    expect![[r#"
        client id       b7a2f0de-31c4-4a77-9a0e-5d2f6c1e8843
        name            soar
        permissions     Machine.Read.All
        redirect URIs   https://soar.example/cb
        machine groups  3
        bulk machines   at most 7 an hour
        created         2026-03-02T08:14:55.0000000Z
    "#]]
    .assert_eq(program.run(&["app", "show", ID]).result());
}

#[test]
fn secrets_and_keys_of_an_app() {
    let thumbprint = "ab".repeat(32);
    let key = json!({
        "thumbprint": thumbprint, "x5t": null, "comment": "soar-2026",
        "creationDateTimeUtc": "2026-03-02T08:14:55Z", "expiryDateTimeUtc": null
    });
    let server = StandIn::start(move |call, _| match call {
        0 => Answer::created(&json!({ "secret": "s3cret" })),
        1 => Answer::created(&key),
        2 => Answer::ok(&json!({ "value": [key] })),
        _ => Answer::empty(),
    });
    let program = Program::of(&server);
    let renewed = program.run(&["app", "secret", "renew", ID]);
    assert!(renewed.result().contains("s3cret") && renewed.stderr.contains("shown this once"));
    program.file("key.pem", "-----BEGIN PUBLIC KEY-----\n");
    program.run(&["app", "key", "add", ID, "-f", "key.pem", "--comment", "soar-2026"]).result();
    assert!(program.run(&["app", "key", "list", ID]).result().contains("soar-2026"));
    program.run(&["app", "key", "remove", ID, &thumbprint]).result();
    let calls = server.calls();
    assert_eq!(calls[1].body, r#"{"pem":"-----BEGIN PUBLIC KEY-----\n","comment":"soar-2026"}"#);
    let lines: Vec<_> =
        calls.iter().map(|call| call.line.replace(ID, "ID").replace(&thumbprint, "KEY")).collect();
    expect![[r#"
        POST /api/cordon/v1/apps/ID/secret
        POST /api/cordon/v1/apps/ID/keys
        GET /api/cordon/v1/apps/ID/keys
        DELETE /api/cordon/v1/apps/ID/keys/KEY"#]]
    .assert_eq(&lines.join("\n"));
}

#[test]
fn accounts_are_made_changed_and_deleted() {
    let user = json!({
        "id": ID, "name": "ann", "displayName": "Ann", "groups": ["responders"], "enabled": true,
        "creationDateTimeUtc": "2026-03-02T08:14:55Z", "passwordDateTimeUtc": "2026-03-02T08:14:55Z",
        "lockedUntilDateTimeUtc": null, "password": "k3mz-9xwp"
    });
    let server = StandIn::start(move |_, call| match call.line.split(' ').next() {
        Some("POST") => Answer::created(&user),
        Some("DELETE") => Answer::empty(),
        _ => Answer::ok(&user),
    });
    let program = Program::of(&server);
    let created = program.run(&["user", "create", "ann", "--group", "responders", "--display-name", "Ann"]);
    expect![[r#"
        name          ann
        password      k3mz-9xwp
        display name  Ann
        user groups   responders
    "#]]
    .assert_eq(created.result());
    assert!(created.stderr.contains("shown this once"));
    program
        .run_with_input(&["user", "create", "bob", "--password-file", "-"], "correct horse battery\n")
        .result();
    program.run(&["user", "update", "ann", "--no-group"]).result();
    program.run(&["user", "disable", "ann"]).result();
    program.run(&["user", "enable", "ann"]).result();
    let reset = program.run(&["user", "reset-password", "ann", "-o", "json"]);
    let made: serde_json::Value = serde_json::from_str(reset.result()).unwrap();
    program.run(&["user", "delete", "ann"]).result();
    let calls = server.calls();
    let last = calls.iter().rev().find(|call| call.line.starts_with("PATCH")).unwrap();
    assert_eq!(last.body, format!("{{\"password\":{}}}", made["password"]));
    assert!(made["password"].as_str().unwrap().len() > 30);
    let told = |call: &Call| format!("{} {}", call.line, call.body);
    expect![[r#"
        POST /api/cordon/v1/users {"name":"ann","displayName":"Ann","groups":["responders"]}
        POST /api/cordon/v1/users {"name":"bob","displayName":"","groups":[],"password":"correct horse battery"}
        PATCH /api/cordon/v1/users/ann {"groups":[]}
        PATCH /api/cordon/v1/users/ann {"enabled":false}
        PATCH /api/cordon/v1/users/ann {"enabled":true}"#]]
    .assert_eq(&calls[..5].iter().map(told).collect::<Vec<_>>().join("\n"));
    let short = program.run_with_input(&["user", "create", "bob", "--password-file", "-"], "short\n");
    assert_eq!(short.error(2), "a password has at least 15 characters");
}

fn group(name: &str, id: i64, rank: Option<u32>) -> serde_json::Value {
    json!({
        "id": id, "name": name, "description": "", "rank": rank, "userGroups": ["responders"], "policy": null,
        "rule": [{ "property": "tag", "operator": "equals", "value": "finance" }], "machines": 12
    })
}

#[test]
fn machine_groups_are_saved_previewed_and_deleted() {
    let server = StandIn::start(|_, call| {
        if call.line.contains("/Unknown") && call.line.starts_with("GET") {
            return Answer::error(404, "ResourceNotFound", "MachineGroup Unknown was not found");
        }
        if call.line.ends_with("preview") {
            return Answer::ok(&json!({ "machines": 12, "joining": 3, "leaving": 0, "examples": [] }));
        }
        if call.line.starts_with("DELETE") {
            Answer::empty()
        } else {
            Answer::ok(&group("Finance", 3, Some(1)))
        }
    });
    let program = Program::of(&server);
    let condition = ["--condition", "name startsWith pay roll", "--condition", "tag equals finance"];
    program.run(&[&["machine-group", "save", "Unknown", "--rank", "1"], &condition[..]].concat()).result();
    program.run(&["machine-group", "save", "Finance", "--policy", "strict", "--no-user-group"]).result();
    let preview = program.run(&["machine-group", "preview", "Finance", "--no-condition"]);
    expect![[r#"
        machines  12
        joining   3
        leaving   0
    "#]]
    .assert_eq(preview.result());
    program.run(&["machine-group", "delete", "Finance"]).result();
    let bodies = server.calls().into_iter().map(|call| call.body).filter(|body| !body.is_empty());
    expect![[r#"
        {"name":"Unknown","description":"","rank":1,"rule":[{"property":"name","operator":"startsWith","value":"pay roll"},{"property":"tag","operator":"equals","value":"finance"}],"userGroups":[]}
        {"name":"Finance","description":"","rule":[{"property":"tag","operator":"equals","value":"finance"}],"userGroups":[],"policy":"strict"}
        {"name":"Finance","description":"","rule":[],"userGroups":["responders"]}"#]]
    .assert_eq(&bodies.collect::<Vec<_>>().join("\n"));
    assert_eq!(program.run(&["machine-group", "save", "x", "--condition", "color equals red"]).code, 2);
}

#[test]
fn roles_keep_what_is_not_given() {
    let role = json!({
        "name": "Tier 1", "description": "", "rights": ["View data"], "userGroups": ["responders"],
        "bulkMachinesMax": null
    });
    let server =
        StandIn::start(
            move |_, call| {
                if call.line.starts_with("DELETE") { Answer::empty() } else { Answer::ok(&role) }
            },
        );
    let program = Program::of(&server);
    program.run(&["role", "save", "Tier 1", "--bulk-machines-max", "5", "--user-group", "night"]).result();
    program.run(&["role", "delete", "Tier 1"]).result();
    let calls = server.calls();
    assert_eq!(calls[1].line, "PUT /api/cordon/v1/roles/Tier%201");
    assert_eq!(
        calls[1].body,
        r#"{"name":"Tier 1","description":"","rights":["View data"],"userGroups":["night"],"bulkMachinesMax":5}"#
    );
    assert_eq!(program.run(&["role", "save", "x", "--right", "Fly"]).code, 2);
}

#[test]
fn settings_are_set_and_taken_back() {
    let setting = json!({ "name": "bulkMachinesPerHour", "value": 500, "default": 100, "isSet": true });
    let server = StandIn::start(move |_, _| Answer::ok(&json!({ "value": [setting] })));
    let program = Program::of(&server);
    expect![[r#"
        NAME                 VALUE  SET  DEFAULT
        bulkMachinesPerHour  500    yes  100
    "#]]
    .assert_eq(program.run(&["settings", "list"]).result());
    program.run(&["settings", "set", "bulkMachinesPerHour=500", "rateLimitPerHour=9"]).result();
    program.run(&["settings", "unset", "rateLimitPerMinute"]).result();
    let calls = server.calls();
    assert_eq!(calls[1].line, "PATCH /api/cordon/v1/settings");
    assert_eq!(calls[1].body, r#"{"rateLimitPerHour":9,"bulkMachinesPerHour":500}"#);
    assert_eq!(calls[2].body, r#"{"rateLimitPerMinute":null}"#);
    for wrong in ["rateLimit=1", "rateLimitPerHour", "rateLimitPerHour=many"] {
        assert_eq!(program.run(&["settings", "set", wrong]).code, 2, "{wrong}");
    }
}

#[test]
fn the_audit_log_is_filtered_and_exported() {
    let server = StandIn::start(|call, _| match call {
        0 => Answer::ok(&json!({ "value": [] })),
        1 => Answer::text(200, "{\"id\":2}\n{\"id\":1}\n"),
        _ => Answer::error(403, "Forbidden", "Missing application roles."),
    });
    let program = Program::of(&server);
    let filter = ["--actor", "ann", "--operation", "role_save", "--since", "2026-03-02T08:00:00Z"];
    program.run(&[&["audit", "list", "--top", "5"], &filter[..]].concat()).result();
    let exported = program.run(&["audit", "export", "--subject", "x y", "--format", "csv"]);
    assert_eq!(exported.result(), "{\"id\":2}\n{\"id\":1}\n", "as it comes");
    assert!(program.run(&["audit", "export"]).error(4).starts_with("Forbidden"));
    expect![[r#"
        GET /api/cordon/v1/auditEntries?actor=ann&operation=role_save&since=2026-03-02T08%3A00%3A00.0000000Z&top=5
        GET /api/cordon/v1/auditEntries/export?subject=x+y&format=csv
        GET /api/cordon/v1/auditEntries/export?format=jsonl"#]]
    .assert_eq(&server.lines().join("\n"));
}
