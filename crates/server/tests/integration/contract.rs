//! The HTTP contract, row by row: a test for each row and each rule of its sections 1 to 8, named after it.
//!
//! Each says in a few calls what clients rely on; what needs more than that is tested in the noun's own file.
//! [`ROWS`] stands for the contract: a row without a test fails here, and so does a test without a row.

mod clients;
mod collections;
mod errors;
mod machine_action;
mod permissions;
mod rate_limits;
mod restrict;
mod tokens;

use std::collections::BTreeSet;

use cordon_server::config::Config;
use domain::app::CLI_APP_ID;
use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::client::{Client, Reply};
use crate::harness::machine::{Behavior, Connection, Machine};
use crate::harness::server::TestServer;

/// An id that no machine has.
const NOWHERE: &str = "0f3c9a7be1d2445566778899aabbccddeeff0011";
/// The vendor's name of the API, as its samples have it.
const VENDOR: &str = "https://api.securitycenter.microsoft.com";
const PASSWORD: &str = "correct horse battery staple";

/// The rows of the contract's tables and its rules: the name of the test, and what it says in short.
const ROWS: &[(&str, &str)] = &[
    ("s1_request", "POST /api/machines/{id}/restrictCodeExecution and unrestrictCodeExecution"),
    ("s1_application_permission", "Machine.RestrictExecution"),
    (
        "s1_delegated_permission",
        "Machine.RestrictExecution, a role with Active remediation actions, the group",
    ),
    ("s1_headers", "Authorization and Content-Type, both required"),
    ("s1_body", "Comment is required; key names are case sensitive"),
    ("s1_success", "201 and the entity"),
    ("s1_rate_limit", "100 calls a minute and 1500 an hour"),
    ("s1_action_type", "RestrictCodeExecution, UnrestrictCodeExecution"),
    ("s1_example", "the example, field by field"),
    ("s1_spelling_of_paths", "/api/v1.0, case of fixed segments, slash at the end"),
    ("s1_machine_id_or_name", "id of either case; a name that one visible machine has"),
    ("s1_content_type", "application/json with any parameters, else 400 InvalidRequestBody"),
    ("s1_malformed_body", "400 InvalidRequestBody"),
    ("s1_comment_missing", "400 MissingRequiredParameter"),
    ("s1_comment_too_long", "more than 4,000 characters: 400 InvalidInput"),
    ("s1_unknown_keys", "are ignored"),
    ("s1_external_id", "at most 256 characters, echoed"),
    ("s1_expires_in", "ISO 8601 duration: released by itself"),
    ("s1_policy", "the named allow policy, else that of the machine's group"),
    ("s1_same_kind_active", "400 ActiveRequestAlreadyExists with the id"),
    ("s1_idempotency_key", "the original 201 is replayed"),
    ("s1_opposite_kind_active", "the new order wins, the older is Cancelled and names it"),
    ("s1_already_restricted", "a new action that succeeds, never a hang"),
    ("s1_preflight", "OsPlatformNotSupported, ClientVersionNotSupported, before 201"),
    ("s1_prefer_wait", "holds the reply until the action is final; still 201"),
    ("s2_id", "GUID"),
    ("s2_type", "the vendor's types"),
    ("s2_title", "null"),
    ("s2_requestor", "the person's name, or the application's id"),
    ("s2_requestor_comment", "the Comment"),
    ("s2_status", "Pending, InProgress, Succeeded, Failed, TimeOut, Cancelled"),
    ("s2_machine_id_and_name", "filled from the start"),
    ("s2_times", "UTC, Z, 7 digits; 0 to 9 on input; no lastUpdateTimeUtc"),
    ("s2_cancellation", "null unless cancelled"),
    ("s2_error_h_result", "0 when fine"),
    ("s2_scope", "null"),
    ("s2_external_id", "the caller's, or null"),
    ("s2_request_source", "PublicApi"),
    ("s2_related_file_info", "null"),
    ("s2_commands", "[]"),
    ("s2_troubleshoot_info", "null, or why it failed"),
    ("s2_life_of_an_action", "Pending, InProgress when accepted, Succeeded when proved; final stays"),
    ("s2_failed", "carries the reason"),
    ("s2_time_out", "past the deadline, 3 days by default; the intent is withdrawn"),
    ("s2_fetch", "200, or 404 ResourceNotFound"),
    ("s2_cancel", "200 and the entity; on a final action 400 BadRequest with its status"),
    ("s2_restricting_is_not_reading", "the 403 says so"),
    ("s3_lists", "context and value"),
    ("s3_filter_on_actions", "each property"),
    ("s3_filter_on_machines", "each property"),
    ("s3_operators", "each operator, quoting, date-times, spaces"),
    ("s3_top_and_skip", "up to 10,000, above 400 ODataError"),
    ("s3_orderby", "any property; newest first for actions, id for machines"),
    ("s3_select_and_count", "$select, $count=true, /$count"),
    ("s3_expand", "400 ODataError"),
    ("s3_paging", "nextLink when more rows exist and $top was not given"),
    ("s3_bad_query", "names the option, the position and what was expected"),
    ("s3_machine", "by id or name, with its context; 404 when unknown"),
    ("s3_tags", "Add and Remove; 200 and the machine"),
    ("s3_actions_of_a_machine", "GET /api/machines/{id}/machineactions"),
    ("s3_machine_fields", "every field; what is not assessed is None"),
    ("s3_execution_restriction", "desired, reported, generation, since, policy, drift, backend"),
    ("s4_claims_of_applications", "roles and the rest, v1 and v2"),
    ("s4_claims_of_people", "scp, upn, preferred_username, oid, groups"),
    ("s4_audiences", "the vendor's names with and without a slash, and our URL"),
    ("s4_issuers", "a list of issuers by discovery"),
    ("s4_algorithms", "pinned: never none, never HMAC"),
    ("s4_token_endpoint_v1", "resource=; numbers as strings"),
    ("s4_token_endpoint_v2", "scope=.../.default; numbers"),
    ("s4_client_authentication", "secret in the form or by HTTP Basic, or an assertion"),
    ("s4_token_errors", "the form of OAuth"),
    ("s4_discovery_and_keys", "per tenant, v1 and v2"),
    ("s4_people_sign_in", "authorization code with PKCE, device code"),
    ("s4_password_grant", "off by default, can be switched on"),
    ("s4_unauthorized", "401 with WWW-Authenticate"),
    ("s4_wrong_audience", "403 that names the accepted ones"),
    ("s5_permission_strings", "of applications and of people"),
    ("s5_message_of_403", "Missing application roles, or scopes"),
    ("s5_three_conditions", "scope, right, group"),
    ("s5_roles", "the vendor's rights, given to user groups"),
    ("s5_administrator", "sees all machines"),
    ("s5_rank_and_rules", "the highest rank wins; OR inside a property, AND across"),
    ("s5_ungrouped", "cannot be deleted or ranked"),
    ("s5_user_groups_of_a_group", "none: open to all with a role; some: closed to others"),
    ("s5_groups_of_applications", "tenant-wide, or limited"),
    ("s5_outside_the_group", "404 with the same bytes; lists leave machines and their actions out"),
    ("s5_admin_api", "under /api/cordon/v1"),
    ("s6_limits", "per operation and application, both windows"),
    ("s6_429", "TooManyRequests, Retry-After, the limit and the wait"),
    ("s6_a_refused_call_spends_nothing", "nothing"),
    ("s6_settings", "the limits are settings, the vendor's numbers the default"),
    ("s6_restart", "they hold over a restart"),
    ("s7_envelope", "code, message, target; also for what the framework refuses"),
    ("s7_bad_request", "400"),
    ("s7_odata_error", "400"),
    ("s7_invalid_input", "400"),
    ("s7_invalid_request_body", "400"),
    ("s7_missing_required_parameter", "400 Parameter {name} is missing"),
    ("s7_os_platform_not_supported", "400"),
    ("s7_client_version_not_supported", "400"),
    ("s7_active_request_already_exists", "400"),
    ("s7_unauthorized", "401"),
    ("s7_forbidden", "403 for a permission and for an audience"),
    ("s7_disabled_feature", "403 switched off"),
    ("s7_disallowed_operation", "403 refused, with the reason"),
    ("s7_not_found", "404 route"),
    ("s7_resource_not_found", "404 Machine {id} was not found"),
    ("s7_too_many_requests", "429"),
    ("s7_internal_server_error", "500, never an internal detail"),
    ("s8_201_and_final_within_seconds", "the id resolves at once; an online machine is final soon"),
    ("s8_token_endpoint_get_with_form_body", "answers"),
    ("s8_token_endpoint_without_content_type", "answers"),
    ("s8_token_endpoint_ignores_unknown_fields", "client_info, redirectUri"),
    ("s8_token_endpoint_offline_access", "before the scope"),
    ("s8_token_endpoint_expires_in_is_a_number", "v2"),
    ("s8_openid_configuration", "issuer, authorization_endpoint, token_endpoint, jwks_uri"),
    ("s8_other_host_names", "answered; nothing redirects"),
    ("s8_machine_objects", "aadDeviceId null, machineTags never null, numbers are numbers"),
    ("s8_findbyip", "GET /api/machines/findbyip(ip='..',timestamp=..)"),
    ("s8_machineactions_of_a_machine", "newest first"),
    ("s8_available_machine_actions", "action, isAvailable, notSupportedReason"),
    ("s8_connectivity_checks", "/api/alerts and /api/exposureScore"),
    ("s8_replies", "value; absolute nextLink; application/json; error.target"),
    ("s8_never_throttled_below_the_limits", "a hundred calls at once"),
];

#[test]
fn every_row_of_the_contract_has_a_test() {
    let sources = [
        include_str!("contract/restrict.rs"),
        include_str!("contract/machine_action.rs"),
        include_str!("contract/collections.rs"),
        include_str!("contract/tokens.rs"),
        include_str!("contract/permissions.rs"),
        include_str!("contract/rate_limits.rs"),
        include_str!("contract/errors.rs"),
        include_str!("contract/clients.rs"),
    ];
    let mut tests = BTreeSet::new();
    for (section, source) in (1..).zip(sources) {
        for item in source.split("#[tokio::test]\nasync fn ").skip(1) {
            let name = item.split_once('(').unwrap().0;
            assert!(name.starts_with(&format!("s{section}_")), "{name} is not of section {section}");
            assert!(tests.insert(name), "{name} is there twice");
        }
    }
    let rows: BTreeSet<_> = ROWS.iter().map(|(name, _)| *name).collect();
    assert_eq!(rows.len(), ROWS.len(), "a row is there twice");
    assert_eq!(tests.difference(&rows).collect::<Vec<_>>(), Vec::<&&str>::new(), "tests without a row");
    assert_eq!(rows.difference(&tests).collect::<Vec<_>>(), Vec::<&&str>::new(), "rows without a test");
}

/// A server with one machine, and the app that may do everything.
struct Place {
    server: TestServer,
    client: Client,
    machine: Machine,
}

impl Place {
    async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    async fn start_with(set: impl FnOnce(&mut Config)) -> Self {
        let server = TestServer::start_with(set).await;
        let machine = Machine::enroll(&server, "lab-042").await;
        Self { client: server.admin(), server, machine }
    }

    /// A server where people can sign in by their password, which is the shortest way to their token.
    async fn with_people() -> Self {
        Self::start_with(|config| config.password_grant = true).await
    }

    /// Connects the machine as one that obeys.
    async fn online(&self) -> Connection {
        self.machine.connect(&self.server, Behavior::Obey).await
    }

    fn path(&self, rest: &str) -> String {
        format!("/api/machines/{}{rest}", self.machine.id)
    }

    /// A restrict that is to succeed.
    async fn restricted(&self) -> Value {
        self.client.restrict(&self.machine.id).await.expect_status(201)
    }

    async fn role(&self, name: &str, rights: &[&str], user_groups: &[&str]) {
        let role = json!({"name": name, "rights": rights, "userGroups": user_groups});
        self.client.put(&format!("/api/cordon/v1/roles/{name}"), &role).await.expect_status(200);
    }

    /// A machine group of the machines whose name begins so.
    async fn machine_group(&self, name: &str, prefix: &str, user_groups: &[&str]) -> Value {
        let rule = json!([{"property": "name", "operator": "startsWith", "value": prefix}]);
        let group = json!({"name": name, "rule": rule, "userGroups": user_groups});
        self.client.put(&format!("/api/cordon/v1/machineGroups/{name}"), &group).await.expect_status(200)
    }

    async fn account(&self, name: &str, groups: &[&str]) {
        let account = json!({"name": name, "groups": groups, "password": PASSWORD});
        self.client.post("/api/cordon/v1/users", &account).await.expect_status(201);
    }

    /// Signs an account in, for these scopes.
    async fn sign_in(&self, name: &str, scopes: &[&str]) -> Client {
        let scopes: Vec<_> = scopes.iter().map(|scope| format!("{VENDOR}/{scope}")).collect();
        let (app, scope) = (CLI_APP_ID.to_string(), scopes.join(" "));
        let form = [
            ("grant_type", "password"),
            ("client_id", &app),
            ("username", name),
            ("password", PASSWORD),
            ("scope", &scope),
        ];
        let reply = token(&self.server, "/v2.0", &form).await.expect_status(200);
        Client { app, ..self.client.with_token(reply["access_token"].as_str().unwrap()) }
    }
}

/// Asks for a token. The version is empty, or `/v2.0`.
async fn token(server: &TestServer, version: &str, form: &[(&str, &str)]) -> Reply {
    Reply::of(server.http.post(server.token_url(version)).form(form)).await
}

async fn settings_set(client: &Client, settings: &Value) {
    let request = client.request(Method::PATCH, "/api/cordon/v1/settings").json(settings);
    Reply::of(request).await.expect_status(200);
}

/// The form of the administrator app, with more.
fn app_form<'a>(server: &'a TestServer, id: &'a str, more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    let secret = server.initialized.client_secret.as_str();
    [&[("grant_type", "client_credentials"), ("client_id", id), ("client_secret", secret)], more].concat()
}

fn id(entity: &Value) -> &str {
    entity["id"].as_str().unwrap()
}

/// Whether this is a time as the contract writes it: UTC, `Z`, seven fractional digits.
fn is_time(value: &Value) -> bool {
    let pattern = "dddd-dd-ddTdd:dd:dd.dddddddZ";
    let matches = |(c, p): (char, char)| if p == 'd' { c.is_ascii_digit() } else { c == p };
    value
        .as_str()
        .is_some_and(|text| text.len() == pattern.len() && text.chars().zip(pattern.chars()).all(matches))
}

/// The ids of the rows of a list.
async fn ids(client: &Client, path: &str) -> Vec<String> {
    let list = client.get(path).await.expect_status(200);
    list["value"].as_array().unwrap().iter().map(|row| id(row).to_owned()).collect()
}
