//! Apps and enrollment tokens.

use expect_test::expect;
use serde_json::json;

use crate::program::Program;
use crate::stand_in::{Answer, StandIn};

const ID: &str = "b7a2f0de-31c4-4a77-9a0e-5d2f6c1e8843";

#[test]
fn an_app_is_made_listed_and_revoked() {
    let app = json!({
        "id": ID, "name": "soar", "permissions": ["Machine.Read.All", "Machine.RestrictExecution"],
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
        r#"{"name":"soar","permissions":["Machine.Read.All","Machine.RestrictExecution"]}"#
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
