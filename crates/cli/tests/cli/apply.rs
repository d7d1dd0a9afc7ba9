//! Applying documents, and telling what differs.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use expect_test::expect;
use serde_json::{Value, json};

use crate::program::{Program, Run};
use crate::stand_in::{Answer, StandIn};

/// What the server has: for each collection, its things by name. Groups are kept in the order of their ranks.
#[derive(Default)]
struct Store {
    policies: BTreeMap<String, Value>,
    groups: Vec<Value>,
    roles: BTreeMap<String, Value>,
    settings: BTreeMap<String, u64>,
    /// The name that no save is taken of.
    refused: Option<&'static str>,
}

/// A server that keeps what it is told, groups by rank as the real one does.
fn server() -> (StandIn, Arc<Mutex<Store>>) {
    let store = Arc::new(Mutex::new(Store::default()));
    let shared = Arc::clone(&store);
    let server = StandIn::start(move |_, call| {
        let mut store = shared.lock().unwrap();
        let (method, path) = call.line.split_once(' ').unwrap();
        let mut segments = path.trim_start_matches("/api/cordon/v1/").split('/');
        let (collection, name) = (segments.next().unwrap(), segments.next());
        let name = name.map(|name| name.replace("%20", " "));
        store.handle(method, collection, name.as_deref(), &call.body)
    });
    (server, store)
}

impl Store {
    fn handle(&mut self, method: &str, collection: &str, name: Option<&str>, body: &str) -> Answer {
        let body: Value = serde_json::from_str(body).unwrap_or_default();
        if method == "PUT" && self.refused.is_some_and(|refused| Some(refused) == name) {
            return Answer::error(400, "InvalidInput", "not this one");
        }
        match (method, collection, name) {
            ("GET", "policies", None) => {
                Answer::ok(&json!({ "value": self.policies.values().collect::<Vec<_>>() }))
            }
            ("GET", "roles", None) => {
                Answer::ok(&json!({ "value": self.roles.values().collect::<Vec<_>>() }))
            }
            ("GET", "machineGroups", None) => Answer::ok(&json!({ "value": self.ranked() })),
            ("GET" | "PATCH", "settings", None) => {
                for (name, value) in body.as_object().into_iter().flatten() {
                    match value.as_u64() {
                        Some(value) => drop(self.settings.insert(name.clone(), value)),
                        None => drop(self.settings.remove(name)),
                    }
                }
                let names = ["rateLimitPerHour", "bulkMachinesPerHour"];
                let setting = |name: &str| {
                    let set = self.settings.get(name);
                    json!({ "name": name, "value": set.unwrap_or(&100), "default": 100, "isSet": set.is_some() })
                };
                Answer::ok(&json!({ "value": names.map(setting) }))
            }
            ("PUT", "policies", Some(name)) => {
                let stored = json!({
                    "revision": 1, "digest": "ab", "lastUpdateDateTimeUtc": "2026-03-02T08:14:55Z",
                    "lastUpdateBy": "operator"
                });
                let keys = [body, stored].into_iter().filter_map(|part| part.as_object().cloned());
                let policy = Value::Object(keys.flatten().collect());
                self.policies.insert(name.to_owned(), policy.clone());
                Answer::ok(&policy)
            }
            ("PUT", "roles", Some(name)) => {
                self.roles.insert(name.to_owned(), body.clone());
                Answer::ok(&body)
            }
            ("DELETE", "roles", Some(name)) => {
                self.roles.remove(name).unwrap();
                Answer::empty()
            }
            ("PUT", "machineGroups", Some(name)) => {
                let found = self.groups.iter().position(|group| group["name"] == name);
                let rank = body.get("rank").and_then(Value::as_u64).or(found.map(|found| found as u64 + 1));
                found.map(|found| self.groups.remove(found));
                let place = rank.map_or(usize::MAX, |rank| usize::try_from(rank).unwrap() - 1);
                self.groups.insert(place.min(self.groups.len()), body.clone());
                Answer::ok(&body)
            }
            ("DELETE", "machineGroups", Some(name)) => {
                self.groups.retain(|group| group["name"] != name);
                Answer::empty()
            }
            _ => Answer::error(404, "NotFound", &format!("{method} {collection} {name:?}")),
        }
    }

    fn ranked(&self) -> Vec<Value> {
        let ungrouped = json!({ "name": "Ungrouped machines (default)", "description": "", "rule": [], "userGroups": [] });
        let mut groups: Vec<Value> = [&self.groups[..], &[ungrouped]].concat();
        let last = groups.len() - 1;
        for (place, group) in groups.iter_mut().enumerate() {
            let rank = (place < last).then_some(place + 1);
            group["rank"] = rank.into();
            group["id"] = rank.unwrap_or_default().into();
            group["machines"] = 0.into();
            if group.get("policy").is_none() {
                group["policy"] = Value::Null;
            }
        }
        groups
    }

    fn group_names(&self) -> Vec<&str> {
        self.groups.iter().map(|group| group["name"].as_str().unwrap()).collect()
    }
}

/// A folder with one document of each kind, and one more group.
fn folder(program: &Program) {
    program.file("site/policy.toml", "kind = \"policy\"\nname = \"strict\"\nprofile = \"os-only\"\n[[rules]]\nid = \"tool\"\neffect = \"deny\"\nsha256 = \"E3B0C44298FC1C149AFBF4C8996FB92427AE41E4649B934CA495991B7852B855\"\n");
    program.file("site/groups/finance.toml", "kind = \"machine-group\"\nname = \"Finance\"\nrank = 1\npolicy = \"strict\"\nuserGroups = [\"b\", \"a\"]\n[[rule]]\nproperty = \"tag\"\noperator = \"equals\"\nvalue = \"finance\"\n");
    program.file("site/groups/lab.json", r#"{"kind": "machine-group", "name": "Lab", "rank": 2}"#);
    program.file("site/role.toml", "kind = \"role\"\nname = \"Tier 1\"\nrights = [\"View data\", \"Active remediation actions\"]\nuserGroups = [\"responders\"]\n");
    program.file("site/settings.toml", "kind = \"settings\"\nbulkMachinesPerHour = 500\n");
    program.file("site/README.md", "not a document");
    program.file("site/.hidden.toml", "nor this");
}

fn lines_since(server: &StandIn, before: usize) -> Vec<String> {
    server.lines().into_iter().skip(before).filter(|line| !line.starts_with("GET")).collect()
}

fn check(run: &Run, code: i32) -> &str {
    assert_eq!(run.code, code, "{run:?}");
    &run.stdout
}

#[test]
fn a_folder_is_applied_in_order_and_twice_is_once() {
    let (server, _store) = server();
    let program = Program::of(&server);
    folder(&program);
    let diff = program.run(&["diff", "-f", "site"]);
    expect![[r#"
        + policy "strict"  (site/policy.toml)
            + profile: os-only
            + rule tool: deny e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855
        + machine-group "Finance"  (site/groups/finance.toml)
            + rank: 1
            + policy: strict
            + rule: tag equals finance
            + user group: a
            + user group: b
        + machine-group "Lab"  (site/groups/lab.json)
            + rank: 2
        + role "Tier 1"  (site/role.toml)
            + right: Active remediation actions
            + right: View data
            + user group: responders
        ~ settings  (site/settings.toml)
            + bulkMachinesPerHour: 500
    "#]]
    .assert_eq(check(&diff, 6));
    expect![[r#"
        4 to add, 1 to change
    "#]]
    .assert_eq(&diff.stderr);
    let dry = program.run(&["apply", "-f", "site", "--dry-run"]);
    assert_eq!((check(&dry, 0), lines_since(&server, 0).len()), (diff.stdout.as_str(), 0));

    let applied = program.run(&["apply", "-f", "site"]);
    applied.result();
    expect![[r#"
        4 to add, 1 to change
        done  policy "strict"
        done  machine-group "Finance"
        done  machine-group "Lab"
        done  role "Tier 1"
        done  settings
    "#]]
    .assert_eq(&applied.stderr);
    expect![[r#"
        PUT /api/cordon/v1/policies/strict
        PUT /api/cordon/v1/machineGroups/Finance
        PUT /api/cordon/v1/machineGroups/Lab
        PUT /api/cordon/v1/roles/Tier%201
        PATCH /api/cordon/v1/settings"#]]
    .assert_eq(&lines_since(&server, 0).join("\n"));

    let before = server.lines().len();
    let again = program.run(&["apply", "-f", "site"]);
    expect![[r#"
        = policy "strict"  (site/policy.toml)
        = machine-group "Finance"  (site/groups/finance.toml)
        = machine-group "Lab"  (site/groups/lab.json)
        = role "Tier 1"  (site/role.toml)
        = settings  (site/settings.toml)
    "#]]
    .assert_eq(again.result());
    assert_eq!(lines_since(&server, before), [""; 0]);
    program.run(&["diff", "-f", "site"]).result();
}

#[test]
fn what_changed_is_told_line_by_line_and_only_that_is_sent() {
    let (server, _store) = server();
    let program = Program::of(&server);
    folder(&program);
    program.run(&["apply", "-f", "site"]).result();
    let before = server.lines().len();
    program.file("site/role.toml", "kind = \"role\"\nname = \"Tier 1\"\nrights = [\"View data\"]\nuserGroups = [\"responders\", \"night\"]\n");
    program.file("site/groups/finance.toml", "kind = \"machine-group\"\nname = \"Finance\"\nrank = 2\n");
    program.file("site/groups/lab.json", r#"{"kind": "machine-group", "name": "Lab", "rank": 1}"#);
    let diff = program.run(&["diff", "-f", "site"]);
    expect![[r#"
        = policy "strict"  (site/policy.toml)
        ~ machine-group "Lab"  (site/groups/lab.json)
            - rank: 2
            + rank: 1
        ~ machine-group "Finance"  (site/groups/finance.toml)
            - rank: 1
            + rank: 2
            - policy: strict
            - rule: tag equals finance
            - user group: a
            - user group: b
        ~ role "Tier 1"  (site/role.toml)
            - right: Active remediation actions
            + user group: night
        = settings  (site/settings.toml)
    "#]]
    .assert_eq(check(&diff, 6));
    let json: Value =
        serde_json::from_str(&program.run(&["diff", "-f", "site/role.toml", "-o", "json"]).stdout).unwrap();
    expect![[r#"{"documents":[{"added":["user group: night"],"applied":false,"change":"changed","kind":"role","name":"Tier 1","removed":["right: Active remediation actions"],"source":"site/role.toml"}]}"#]].assert_eq(&json.to_string());
    program.run(&["apply", "-f", "site"]).result();
    expect![[r#"
        PUT /api/cordon/v1/machineGroups/Finance
        PUT /api/cordon/v1/machineGroups/Lab
        PUT /api/cordon/v1/roles/Tier%201"#]]
    .assert_eq(&lines_since(&server, before).join("\n"));
    program.run(&["diff", "-f", "site"]).result();
}

#[test]
fn nothing_is_deleted_without_prune_and_prune_asks() {
    let (server, store) = server();
    let program = Program::of(&server);
    {
        let mut store = store.lock().unwrap();
        for name in ["Administrator", "Old"] {
            let rights = json!(["View data"]);
            let role = json!({ "name": name, "description": "", "rights": rights, "userGroups": [], "bulkMachinesMax": null });
            store.roles.insert(name.to_owned(), role);
        }
        store.groups.push(json!({ "name": "Old", "description": "", "rule": [], "userGroups": [] }));
        store.settings.insert("rateLimitPerHour".to_owned(), 7);
    }
    folder(&program);
    program.run(&["apply", "-f", "site"]).result();
    let diff = program.run(&["diff", "-f", "site"]);
    expect![[r#"
        = policy "strict"  (site/policy.toml)
        = machine-group "Finance"  (site/groups/finance.toml)
        = machine-group "Lab"  (site/groups/lab.json)
        ? machine-group "Old"  only on the server
        = role "Tier 1"  (site/role.toml)
        ? role "Old"  only on the server
        = settings  (site/settings.toml)
        ? settings "rateLimitPerHour"  only on the server
    "#]]
    .assert_eq(diff.result());
    let pruned = program.run(&["diff", "-f", "site", "--prune"]);
    expect![[r#"
        = policy "strict"  (site/policy.toml)
        = machine-group "Finance"  (site/groups/finance.toml)
        = machine-group "Lab"  (site/groups/lab.json)
        - machine-group "Old"  only on the server: to be deleted
        = role "Tier 1"  (site/role.toml)
        - role "Old"  only on the server: to be deleted
            - right: View data
        = settings  (site/settings.toml)
        - settings "rateLimitPerHour"  only on the server: to be taken back
            - rateLimitPerHour: 7
    "#]]
    .assert_eq(check(&pruned, 6));
    let unasked = program.run(&["apply", "-f", "site", "--prune"]);
    assert!(unasked.error(2).contains("give --yes"), "{unasked:?}");
    assert_eq!(store.lock().unwrap().group_names(), ["Finance", "Lab", "Old"]);
    program.run(&["apply", "-f", "site/role.toml", "--prune", "--yes"]).result();
    {
        let store = store.lock().unwrap();
        assert_eq!(store.roles.keys().collect::<Vec<_>>(), ["Administrator", "Tier 1"]);
        assert_eq!(store.group_names().len(), 3, "only kinds that the files hold are pruned");
    }
    program.run(&["apply", "-f", "site", "--prune", "--yes"]).result();
    assert_eq!(store.lock().unwrap().group_names(), ["Finance", "Lab"]);
    assert_eq!(store.lock().unwrap().settings.len(), 1);
    program.run(&["diff", "-f", "site", "--prune"]).result();
}

#[test]
fn all_documents_are_checked_before_the_first_is_sent() {
    let (server, _store) = server();
    let program = Program::of(&server);
    folder(&program);
    for (name, text, expected) in [
        (
            "role.toml",
            "kind = \"role\"\nname = \"r\"\nright = []\n",
            "site/role.toml:3:1: unknown field `right`",
        ),
        (
            "z.json",
            "{\"kind\": \"role\", \"name\": \"Tier 1\"}",
            "site/z.json: role \"Tier 1\" is in site/role.toml too",
        ),
        (
            "z.json",
            "{\"kind\": \"machine-group\", \"name\": \"x\", \"rank\": 2}",
            "site/z.json: another machine group has rank 2",
        ),
        (
            "z.json",
            "{\"kind\": \"app\"}",
            "site/z.json: kind \"app\" is not one of policy, machine-group, role, settings",
        ),
    ] {
        folder(&program);
        program.file(&format!("site/{name}"), text);
        let run = program.run(&["apply", "-f", "site"]);
        assert!(run.error(1).starts_with(expected), "{run:?}");
    }
    assert!(server.lines().is_empty());
    assert!(program.run(&["diff", "-f", "absent"]).error(1).starts_with("cannot read absent"));
}

#[test]
fn the_first_refusal_stops_and_what_was_done_is_told() {
    let (server, store) = server();
    let program = Program::of(&server);
    folder(&program);
    store.lock().unwrap().refused = Some("Tier 1");
    let run = program.run(&["apply", "-f", "site"]);
    assert_eq!(run.code, 4);
    expect![[r#"
        4 to add, 1 to change
        done  policy "strict"
        done  machine-group "Finance"
        done  machine-group "Lab"
        stopped: 3 of 5 calls were made; what they changed stays, and the next run goes on from there
        cordon: role "Tier 1": InvalidInput: not this one (correlation id 00000000-0000-0000-0000-0000000000c0)
    "#]].assert_eq(&run.stderr);
    assert!(store.lock().unwrap().settings.is_empty());
    let run = program.run(&["apply", "-f", "site", "-o", "json"]);
    let report: Value = serde_json::from_str(&run.stdout).unwrap();
    let applied =
        report["documents"].as_array().unwrap().iter().map(|told| told["applied"].as_bool().unwrap());
    assert_eq!(applied.collect::<Vec<_>>(), [true, true, true, false, false]);
}
