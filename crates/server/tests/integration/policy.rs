//! Allow policies: applied, fetched, and sent to machines ahead of time.

use serde_json::{Value, json};

use crate::harness::machine::Machine;
use crate::harness::server::TestServer;

const POLICIES: &str = "/api/cordon/v1/policies";

#[tokio::test]
async fn every_server_has_the_default_policy() {
    let server = TestServer::start().await;
    let admin = server.admin();
    let list = admin.get(POLICIES).await.expect_status(200);
    let policy = admin.get(&format!("{POLICIES}/default")).await.expect_status(200);
    assert_eq!(list["value"], json!([policy]));
    assert_eq!((&policy["name"], &policy["profile"]), (&json!("default"), &json!("os+approved")));
    assert_eq!((&policy["rules"], &policy["revision"]), (&json!([]), &json!(1)));
    assert_eq!(policy["digest"].as_str().unwrap().len(), 64);
}

#[tokio::test]
async fn what_is_applied_is_fetched() {
    let server = TestServer::start().await;
    let admin = server.admin();
    let rules = json!([
        {"id": "a-tool", "effect": "allow", "sha256": "ab".repeat(32), "comment": "why"},
        {"id": "b-bad", "effect": "deny", "sha256": "cd".repeat(32), "path": "/opt/bad"},
    ]);
    let document = json!({"name": "default", "profile": "os-only", "rules": rules});
    let path = format!("{POLICIES}/default");
    let applied = admin.put(&path, &document).await.expect_status(200);
    assert_eq!((&applied["revision"], &applied["rules"]), (&json!(2), &rules));
    assert_eq!(applied["lastUpdateBy"], admin.app.as_str());
    let change = json!({
        "name": "default", "fromRevision": 1, "toRevision": 2,
        "profileBefore": "os+approved", "profileAfter": "os-only",
        "settings": [], "added": rules, "removed": [], "changed": [], "machineGroups": ["Ungrouped machines (default)"],
    });
    assert_eq!(applied["change"], change);
    let mut saved = applied.clone();
    saved.as_object_mut().unwrap().remove("change");
    assert_eq!(admin.get(&path).await.expect_status(200), saved);
    // Saving the same again changes nothing.
    let again = admin.put(&path, &document).await.expect_status(200);
    assert_eq!((&again["revision"], &again["change"]["added"]), (&json!(2), &json!([])));
    assert_eq!(admin.get(&path).await.expect_status(200), saved);
}

#[tokio::test]
async fn settings_are_applied_shown_whole_and_compared() {
    let server = TestServer::start().await;
    let admin = server.admin();
    let path = format!("{POLICIES}/lab");
    let before = admin.put(&path, &json!({"name": "lab"})).await.expect_status(200);
    let expected = json!({
        "interpreters": "default", "anonymousCode": "audit", "runningPrograms": "report",
        "containers": "existing", "dualUse": "keep", "allowUpdates": false, "survivalCheck": "refuse",
        "guards": {
            "write_labelled": "audit", "kernel_modules": "enforce", "kexec": "enforce", "ptrace": "enforce",
            "proc_mem": "enforce", "block_devices": "enforce", "binfmt": "enforce", "bpf": "audit",
            "own_files": "enforce", "own_processes": "enforce", "own_bpf": "enforce",
        },
        "notice": {"text": "", "contact": "", "silent": false}, "manifestKeys": [],
    });
    assert_eq!(before["settings"], expected);
    let settings = json!({
        "interpreters": "strict", "survivalCheck": "force", "guards": {"kexec": "audit"},
        "notice": {"contact": "4711"},
    });
    let rules = json!([{"id": "a", "effect": "allow", "fsVerity": "ab".repeat(32)}]);
    let document = json!({"name": "lab", "settings": settings, "rules": rules});
    let applied = admin.put(&path, &document).await.expect_status(200);
    let change = |setting: &str, before: &str, after: &str| json!({"setting": setting, "before": before, "after": after});
    let changes = json!([
        change("interpreters", "default", "strict"),
        change("survivalCheck", "refuse", "force"),
        change("guards.kexec", "enforce", "audit"),
        change("notice.contact", "", "4711"),
    ]);
    assert_eq!((&applied["change"]["settings"], &applied["rules"]), (&changes, &rules));
    let shown = admin.get(&path).await.expect_status(200);
    assert_eq!((&shown["settings"]["interpreters"], &shown["rules"]), (&json!("strict"), &rules));
    assert_eq!(shown["settings"]["guards"]["kexec"], "audit");
    assert_eq!(shown["settings"]["guards"]["ptrace"], "enforce");
    // What was shown is what is applied.
    let document = json!({"name": "lab", "settings": shown["settings"], "rules": rules});
    let again = admin.put(&path, &document).await.expect_status(200);
    assert_eq!((&again["revision"], &again["change"]["settings"]), (&json!(2), &json!([])));
    let reverted = admin.put(&path, &json!({"name": "lab"})).await.expect_status(200);
    assert_eq!((&reverted["revision"], &reverted["settings"]), (&json!(3), &expected));
}

#[tokio::test]
async fn a_dry_run_saves_nothing() {
    let server = TestServer::start().await;
    let admin = server.admin();
    let document =
        json!({"name": "lab", "rules": [{"id": "a", "effect": "allow", "sha256": "ab".repeat(32)}]});
    let path = format!("{POLICIES}/lab");
    let tried = admin.put(&format!("{path}?dryRun=true"), &document).await.expect_status(200);
    assert_eq!((&tried["revision"], &tried["change"]["fromRevision"]), (&json!(1), &Value::Null));
    admin.get(&path).await.expect_error(404, "ResourceNotFound");
    let applied = admin.put(&format!("{path}?dryRun=false"), &document).await.expect_status(200);
    assert_eq!((&applied["digest"], &applied["change"]), (&tried["digest"], &tried["change"]));
    for query in ["dryRun=yes", "dryrun=true", "dryRun=true&dryRun=true"] {
        admin.put(&format!("{path}?{query}"), &document).await.expect_error(400, "InvalidInput");
    }
}

#[tokio::test]
async fn revisions_are_listed_and_compared() {
    let server = TestServer::start().await;
    let admin = server.admin();
    let path = format!("{POLICIES}/lab");
    for (profile, digest) in [("os-only", "aa"), ("os-only", "bb"), ("survival-only", "bb")] {
        let rules = json!([{"id": "a", "effect": "allow", "sha256": digest.repeat(32)}]);
        let document = json!({"name": "lab", "profile": profile, "rules": rules});
        admin.put(&path, &document).await.expect_status(200);
    }
    let list = admin.get(&format!("{path}/revisions")).await.expect_status(200);
    let revisions: Vec<_> =
        list["value"].as_array().unwrap().iter().map(|policy| &policy["revision"]).collect();
    assert_eq!(revisions, [3, 2, 1]);
    assert_eq!(list["value"][0], admin.get(&path).await.expect_status(200));
    let newest = admin.get(&format!("{path}/diff")).await.expect_status(200);
    assert_eq!((&newest["fromRevision"], &newest["profileAfter"]), (&json!(2), &json!("survival-only")));
    assert_eq!(newest["changed"], json!([]));
    let first = admin.get(&format!("{path}/diff?from=1&to=2")).await.expect_status(200);
    let rule = |digest: &str| json!({"id": "a", "effect": "allow", "sha256": digest.repeat(32)});
    assert_eq!(first["changed"], json!([{"before": rule("aa"), "after": rule("bb")}]));
    assert_eq!(first["profileBefore"], Value::Null);
    let whole = admin.get(&format!("{path}/diff?from=0")).await.expect_status(200);
    assert_eq!((&whole["fromRevision"], &whole["added"]), (&Value::Null, &json!([rule("bb")])));
    for query in ["from=x", "from=-1", "base=1"] {
        admin.get(&format!("{path}/diff?{query}")).await.expect_error(400, "InvalidInput");
    }
    for path in [
        format!("{path}/diff?to=9"),
        format!("{POLICIES}/nowhere/diff"),
        format!("{POLICIES}/nowhere/revisions"),
    ] {
        admin.get(&path).await.expect_error(404, "ResourceNotFound");
    }
}

#[tokio::test]
async fn a_machine_holds_the_policy_before_the_order_that_names_it() {
    let server = TestServer::start().await;
    let admin = server.admin();
    // The machine of these tests insists on it.
    let (machine, _connection) = Machine::online(&server, "lab-042").await;
    for revision in 2..5 {
        let rules = json!([{"id": format!("r{revision}"), "effect": "allow", "sha256": "ab".repeat(32)}]);
        let document = json!({"name": "default", "rules": rules});
        let applied = admin.put(&format!("{POLICIES}/default"), &document).await.expect_status(200);
        let action = admin.restrict(&machine.id).await.expect_status(201);
        admin.wait_for(&action, "Succeeded").await;
        let path = format!("/api/cordon/v1/machineactions/{}/receipt", action["id"].as_str().unwrap());
        let receipt = admin.get(&path).await.expect_status(200);
        assert_eq!(receipt["payload"]["policy"], applied["digest"]);
    }
}

#[tokio::test]
async fn a_policy_that_makes_no_sense_is_refused() {
    let server = TestServer::start().await;
    let admin = server.admin();
    let rule = |rule: Value| json!({"name": "lab", "rules": [rule]});
    let sha256 = "ab".repeat(32);
    for (body, code) in [
        (json!({}), "MissingRequiredParameter"),
        (json!({"name": "other"}), "InvalidInput"),
        (json!({"name": "lab", "profile": "everything"}), "InvalidInput"),
        (json!({"name": "lab", "rules": {}}), "InvalidRequestBody"),
        (json!({"name": "lab", "Rules": []}), "InvalidRequestBody"),
        (json!({"name": "lab", "rule": []}), "InvalidRequestBody"),
        (rule(json!({"id": "a", "effect": "allow"})), "InvalidInput"),
        (rule(json!({"id": "a", "effect": "allow", "sha256": sha256, "fsVerity": sha256})), "InvalidInput"),
        (rule(json!({"id": "a", "effect": "allow", "fsVerity": sha256, "path": "/bin/a"})), "InvalidInput"),
        (rule(json!({"id": "a", "effect": "allow", "fsVerity": "ab"})), "InvalidInput"),
        (json!({"name": "lab", "settings": null}), "InvalidRequestBody"),
        (json!({"name": "lab", "settings": {"interpreter": "open"}}), "InvalidRequestBody"),
        (json!({"name": "lab", "settings": {"interpreters": "ajar"}}), "InvalidInput"),
        (json!({"name": "lab", "settings": {"allowUpdates": "true"}}), "InvalidRequestBody"),
        (json!({"name": "lab", "settings": {"allowUpdates": true}}), "InvalidInput"),
        (json!({"name": "lab", "settings": {"containers": "block"}}), "InvalidInput"),
        (json!({"name": "lab", "settings": {"guards": {"doors": "off"}}}), "InvalidInput"),
        (json!({"name": "lab", "settings": {"guards": {"kexec": "on"}}}), "InvalidInput"),
        (json!({"name": "lab", "settings": {"notice": {"text": "a\u{1b}[2Jb"}}}), "InvalidInput"),
        (json!({"name": "lab", "settings": {"notice": {"contact": "x".repeat(257)}}}), "InvalidInput"),
        (
            rule(json!({"id": "a", "effect": "allow", "sha256": sha256, "when": "always"})),
            "InvalidRequestBody",
        ),
        (rule(json!({"id": "a", "effect": "allow", "sha256": "ab"})), "InvalidInput"),
        (rule(json!({"id": "a", "effect": "maybe", "sha256": sha256})), "InvalidInput"),
        (rule(json!({"id": "a", "effect": "allow", "sha256": sha256, "path": "bin/a"})), "InvalidInput"),
        (rule(json!({"id": "", "effect": "allow", "sha256": sha256})), "InvalidInput"),
    ] {
        let message = admin.put(&format!("{POLICIES}/lab"), &body).await.expect_error(400, code);
        assert!(!message.is_empty(), "{body}");
    }
    admin.get(&format!("{POLICIES}/lab")).await.expect_error(404, "ResourceNotFound");
    let upper = admin.put(&format!("{POLICIES}/LAB"), &json!({"name": "LAB"})).await;
    upper.expect_error(400, "InvalidInput");
}

#[tokio::test]
async fn a_large_policy_is_taken_and_a_larger_one_is_not() {
    let server = TestServer::start().await;
    let admin = server.admin();
    let document = |rules: u32| {
        let rules: Vec<_> = (0..rules)
            .map(|n| json!({"id": format!("rule-{n}"), "effect": "allow", "sha256": format!("{n:064x}")}))
            .collect();
        json!({"name": "large", "rules": rules})
    };
    let path = format!("{POLICIES}/large");
    let applied = admin.put(&path, &document(10_000)).await.expect_status(200);
    assert_eq!(applied["rules"].as_array().unwrap().len(), 10_000);
    admin.put(&path, &document(10_001)).await.expect_error(400, "InvalidInput");
}
