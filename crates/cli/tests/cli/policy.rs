//! Policies: shown, and applied from files.

use api_types::policy::{Policy, Rule};
use api_types::policy_settings::PolicySettings;
use expect_test::expect;
use serde_json::json;

use crate::program::Program;
use crate::stand_in::{Answer, StandIn};

const FILE: &str = r#"name = "default"

[[rules]]
id = "backup-agent"
effect = "allow"
sha256 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
path = "/opt/backup/agent"
"#;

fn policy() -> Policy {
    Policy {
        name: "default".to_owned(),
        profile: "os+approved".to_owned(),
        settings: PolicySettings::default(),
        rules: vec![Rule {
            id: "backup-agent".to_owned(),
            effect: "allow".to_owned(),
            sha256: Some("e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855".to_owned()),
            fs_verity: None,
            path: Some("/opt/backup/agent".to_owned()),
            comment: String::new(),
        }],
        revision: 3,
        digest: "ab".repeat(32),
        last_update_date_time_utc: "2026-03-02T08:14:55Z".parse().unwrap(),
        last_update_by: "operator".to_owned(),
    }
}

#[test]
fn policies_are_listed_and_shown() {
    let server = StandIn::start(|call, _| match call {
        0 => Answer::ok(&json!({ "value": [policy()] })),
        _ => Answer::ok(&policy()),
    });
    let program = Program::of(&server);
    expect![[r#"
        NAME     PROFILE      RULES  REVISION  CHANGED (UTC)        DIGEST
        default  os+approved  1      3         2026-03-02 08:14:55  abababababababababababababababababababababababababababababababab
    "#]].assert_eq(program.run(&["policy", "list"]).result());
    expect![[r#"
        name        default
        profile     os+approved
        revision    3
        digest      abababababababababababababababababababababababababababababababab
        changed     2026-03-02T08:14:55.0000000Z
        changed by  operator
        settings    all at their defaults

        rule    backup-agent
        effect  allow
        sha256  e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855
        path    /opt/backup/agent
    "#]]
    .assert_eq(program.run(&["policy", "show", "default"]).result());
    assert_eq!(server.lines(), ["GET /api/cordon/v1/policies", "GET /api/cordon/v1/policies/default"]);
}

#[test]
fn a_policy_is_applied_from_a_file_or_standard_input() {
    let server = StandIn::start(|_, _| Answer::ok(&policy()));
    let program = Program::of(&server);
    let toml = program.file("policy.toml", FILE);
    program.run(&["policy", "apply", "-f", toml.to_str().unwrap()]).result();
    program.run_with_input(&["policy", "apply", "-f", "-"], FILE).result();
    let shown = program.run(&["policy", "show", "default", "--file"]);
    program.run_with_input(&["policy", "apply", "-f", "-"], shown.result()).result();
    let json = program.file("policy.json", &server.calls()[0].body);
    program.run(&["policy", "apply", "-f", json.to_str().unwrap()]).result();
    program.run_with_input(&["policy", "apply", "-f", "-"], &server.calls()[0].body).result();
    let puts: Vec<_> = server.calls().into_iter().filter(|call| call.line.starts_with("PUT")).collect();
    assert_eq!(puts.len(), 5);
    for put in &puts {
        assert_eq!((put.line.as_str(), &put.body), ("PUT /api/cordon/v1/policies/default", &puts[0].body));
    }
}

#[test]
fn settings_are_written_in_the_file_and_shown() {
    let answer = || {
        let mut policy = policy();
        policy.settings.interpreters = "strict".to_owned();
        policy.settings.guards.insert("kexec".to_owned(), "audit".to_owned());
        policy
    };
    let server = StandIn::start(move |_, _| Answer::ok(&answer()));
    let program = Program::of(&server);
    let text = format!("{FILE}[settings]\ninterpreters = \"strict\"\nguards = {{ kexec = \"audit\" }}\n");
    let shown = program.run_with_input(&["policy", "apply", "-f", "-"], &text);
    let line = "settings    interpreters = strict, guards.kexec = audit\n";
    assert!(shown.result().contains(line), "{}", shown.result());
    let sent: serde_json::Value = serde_json::from_str(&server.calls()[0].body).unwrap();
    assert_eq!(sent["settings"]["interpreters"], "strict");
    let file = program.run(&["policy", "show", "default", "--file"]);
    program.run_with_input(&["policy", "apply", "-f", "-"], file.result()).result();
    assert!(server.calls()[2].body.contains(r#""kexec":"audit""#));
    let wrong = text.replace("\"strict\"", "\"tight\"");
    expect![[r#"standard input: settings: interpreters "tight" is not one of open, default, strict"#]]
        .assert_eq(program.run_with_input(&["policy", "apply", "-f", "-"], &wrong).error(1));
}

#[test]
fn a_faulty_policy_is_not_sent() {
    let server = StandIn::start(|_, _| Answer::ok(&policy()));
    let program = Program::of(&server);
    program.file("policy.toml", &FILE.replace("effect", "efect"));
    expect![
        "policy.toml:5:1: unknown field `efect`, expected one of `id`, `effect`, `sha256`, `fsVerity`, `path`, `comment`"
    ]
    .assert_eq(program.run(&["policy", "apply", "-f", "policy.toml"]).error(1));
    program.file("policy.toml", &FILE.replace("allow", "permit"));
    expect![[r#"policy.toml: rule "backup-agent": effect "permit" is not allow or deny"#]]
        .assert_eq(program.run(&["policy", "apply", "-f", "policy.toml"]).error(1));
    assert_eq!(program.run(&["policy", "apply", "-f", "absent.toml"]).code, 1);
    assert_eq!(server.lines().len(), 0);
}
