//! The list of the API's routes, and the layers that every request passes.
//!
//! [`ROUTES`] is the only list: the router is built from it, paths are matched against it, the API document is generated
//! from it, and the tests read it.
//! Deliberately holds no handler: those are in `routes`, a file for each noun.

pub(crate) mod answer;
mod route;
mod spelling;
mod unread;

use std::sync::LazyLock;

use api_types::app::{App, AppCreate, AppCreated, AppKey, AppKeyCreate, AppSecret};
use api_types::audit_entry::AuditEntry;
use api_types::break_glass::BreakGlassCode;
use api_types::bulk::{BulkReply, BulkRequest};
use api_types::enrollment_token::{EnrollmentToken, EnrollmentTokenCreate, EnrollmentTokenCreated};
use api_types::execution_event::ExecutionEvent;
use api_types::impact_preview::ImpactPreview;
use api_types::machine::{AvailableAction, ExposureScore, Machine, TagRequest};
use api_types::machine_action::{ActionRequest, CancelRequest, MachineAction, Receipt};
use api_types::machine_group::{MachineGroup, MachineGroupDocument, MachineGroupPreview};
use api_types::odata::{Collection, Entity};
use api_types::policy::{Policy, PolicyApplied, PolicyChange, PolicyDocument};
use api_types::role::Role;
use api_types::settings::{Setting, SettingsUpdate};
use api_types::user::{User, UserCreate, UserCreated, UserUpdate};
use axum::Router;
use axum::middleware;
use domain::permission::Requirement;
use serde_json::Value;
use store::list::{MACHINE_ACTIONS, MACHINES};
use tower::ServiceExt as _;

use crate::auth::{self, Gate};
use crate::routes::audit_entry::{AuditExportQuery, AuditQuery};
use crate::routes::execution_event::EventQuery;
use crate::routes::impact_preview::PreviewQuery;
use crate::routes::policy::{ApplyQuery, DiffQuery};
use crate::routes::{
    app, audit_entry, break_glass, bulk, enrollment_token, execution_event, impact_preview, machine,
    machine_action, machine_group, metadata, policy, role, settings, user, vendor,
};
use crate::state::AppState;
use crate::{agents, issuer, openapi};
pub use route::Route;
pub(crate) use route::{Options, Shape};
use route::{delete, get, patch, post, put};

/// Every route of the API. Of two that match a path, the first counts.
pub static ROUTES: LazyLock<Vec<Route>> = LazyLock::new(|| {
    vec![
        get("/api/$metadata", Requirement::READ, metadata::fetch)
            .summary("Fetch the data model of OData clients")
            .detail("CSDL of OData 4.0: the entity sets, and the types of their fields.")
            .answers_with("application/xml"),
        get("/api/machines", Requirement::READ, machine::list)
            .summary("List machines")
            .odata(&MACHINES)
            .answers::<Collection<Machine>>(200),
        get("/api/machines/$count", Requirement::READ, machine::count)
            .summary("Count machines")
            .odata_count(&MACHINES)
            .answers::<u64>(200),
        get(
            "/api/machines/findbyip(ip='{ip}',timestamp={timestamp})",
            Requirement::READ,
            machine::list_by_ip,
        )
        .summary("List the machines that had an address about a time")
        .detail("Within 15 minutes before or after it; at most thirty days ago, and at most 1,000 machines.")
        .refuses(["InvalidInput"])
        .answers::<Collection<Machine>>(200),
        get("/api/machines/{machine}", Requirement::READ, machine::fetch)
            .summary("Fetch a machine by its id or name")
            .answers::<Entity<Machine>>(200),
        get("/api/machines/{machine}/machineactions", Requirement::READ, machine_action::list_of_machine)
            .summary("List the actions of a machine, newest first")
            .odata(&MACHINE_ACTIONS)
            .answers::<Collection<MachineAction>>(200),
        get(
            "/api/machines/{machine}/availableMachineActions",
            Requirement::READ,
            machine::available_actions,
        )
        .summary("List which actions can be started on a machine")
        .answers::<Collection<AvailableAction>>(200),
        get("/api/machines/{machine}/impactPreview", Requirement::READ, impact_preview::fetch)
            .summary("Fetch what a restriction of a machine would refuse now")
            .detail("The machine judges what runs on it by the code that would refuse it, and is asked when the preview \
                     that is kept is too old: ask again while `state` is `Underway`.")
            .query::<PreviewQuery>()
            .refuses(["InvalidInput"])
            .answers::<ImpactPreview>(200),
        post("/api/machines/{machine}/tags", Requirement::WRITE, machine::tag)
            .summary("Give a machine a tag, or take it")
            .detail("The machine's group changes with it when a rule says so.")
            .body::<TagRequest>()
            .answers::<Entity<Machine>>(200),
        post("/api/machines/{machine}/restrictCodeExecution", Requirement::RESTRICT, machine::restrict)
            .summary("Restrict execution of all applications on a machine except a predefined set")
            .detail("The action is `Succeeded` only after the machine has proved it. An open unrestrict is cancelled.")
            .body::<ActionRequest>()
            .heeds(["Idempotency-Key", "Prefer"])
            .refuses(["ActiveRequestAlreadyExists", "ClientVersionNotSupported", "OsPlatformNotSupported"])
            .answers::<Entity<MachineAction>>(201),
        post("/api/machines/{machine}/unrestrictCodeExecution", Requirement::RESTRICT, machine::unrestrict)
            .summary("Enable execution of any application on a machine again")
            .detail("An open restrict is cancelled.")
            .body::<ActionRequest>()
            .heeds(["Idempotency-Key", "Prefer"])
            .refuses(["ActiveRequestAlreadyExists", "ClientVersionNotSupported", "OsPlatformNotSupported"])
            .answers::<Entity<MachineAction>>(201),
        post("/api/machines/{machine}/breakGlassCode", Requirement::BREAK_GLASS, break_glass::show)
            .summary("Show the next break-glass code of a machine")
            .detail("The reply has it, this once. It lifts the restriction on the machine itself, without a network, and works once.")
            .detail("What was shown before counts until a later one was used, or for a day where the machine is connected.")
            .refuses(["DisallowedOperation"])
            .answers::<BreakGlassCode>(201),
        get("/api/machineactions", Requirement::READ, machine_action::list)
            .summary("List machine actions, newest first")
            .odata(&MACHINE_ACTIONS)
            .answers::<Collection<MachineAction>>(200),
        get("/api/machineactions/$count", Requirement::READ, machine_action::count)
            .summary("Count machine actions")
            .odata_count(&MACHINE_ACTIONS)
            .answers::<u64>(200),
        get("/api/machineactions/{action}", Requirement::READ, machine_action::fetch)
            .summary("Fetch a machine action")
            .answers::<Entity<MachineAction>>(200),
        post("/api/machineactions/{action}/cancel", Requirement::RESTRICT, machine_action::cancel)
            .summary("Cancel a machine action that is not final")
            .body::<CancelRequest>()
            .refuses(["BadRequest"])
            .answers::<Entity<MachineAction>>(200),
        get("/api/cordon/v1/machineactions/{action}/receipt", Requirement::READ, machine_action::receipt)
            .summary("Fetch the signed receipt that proves a machine action")
            .answers::<Receipt>(200),
        get("/api/alerts", Requirement::READ, vendor::alerts)
            .summary("List alerts: there are none")
            .detail("For clients that check the connection by it. Cordon has no alerts.")
            .answers::<Collection<Value>>(200),
        get("/api/exposureScore", Requirement::READ, vendor::exposure_score)
            .summary("Fetch the exposure score: there is none")
            .detail("For clients that check the connection by it. Cordon computes no score.")
            .answers::<ExposureScore>(200),
        post("/api/cordon/v1/machines/restrictCodeExecution", Requirement::RESTRICT, bulk::restrict)
            .summary("Restrict many machines")
            .detail("By id, or by a filter. With `DryRun`, only counts them, and answers 200.")
            .detail("More than the limit in an hour needs the right *Bulk remediation*.")
            .body::<BulkRequest>()
            .heeds(["Idempotency-Key"])
            .refuses(["DisabledFeature", "DisallowedOperation", "ODataError"])
            .or_status(200)
            .answers::<BulkReply>(201),
        post("/api/cordon/v1/machines/unrestrictCodeExecution", Requirement::RESTRICT, bulk::unrestrict)
            .summary("Enable execution of any application on many machines again")
            .detail("By id, or by a filter. With `DryRun`, only counts them, and answers 200.")
            .detail("More than the limit in an hour needs the right *Bulk remediation*.")
            .body::<BulkRequest>()
            .heeds(["Idempotency-Key"])
            .refuses(["DisabledFeature", "DisallowedOperation", "ODataError"])
            .or_status(200)
            .answers::<BulkReply>(201),
        get("/api/cordon/v1/executionEvents", Requirement::READ, execution_event::list)
            .summary("List what machines refused to run, latest first")
            .query::<EventQuery>()
            .refuses(["ResourceNotFound"])
            .answers::<Collection<ExecutionEvent>>(200),
        get("/api/cordon/v1/auditEntries", Requirement::ADMINISTER, audit_entry::list)
            .summary("List who did what, latest first")
            .query::<AuditQuery>()
            .answers::<Collection<AuditEntry>>(200),
        get("/api/cordon/v1/auditEntries/export", Requirement::ADMINISTER, audit_entry::export)
            .summary("Export who did what, latest first")
            .detail("JSON lines, or CSV with a head (`format=csv`).")
            .query::<AuditExportQuery>()
            .by_wish("text/csv")
            .answers_with("application/jsonl"),
        get("/api/cordon/v1/apps", Requirement::ADMINISTER, app::list)
            .summary("List applications")
            .answers::<Collection<App>>(200),
        post("/api/cordon/v1/apps", Requirement::ADMINISTER, app::create)
            .summary("Make an application")
            .detail("The reply has its secret, this once.")
            .body::<AppCreate>()
            .answers::<AppCreated>(201),
        get("/api/cordon/v1/apps/{app}", Requirement::ADMINISTER, app::fetch)
            .summary("Fetch an application")
            .answers::<App>(200),
        put("/api/cordon/v1/apps/{app}", Requirement::ADMINISTER, app::update)
            .summary("Change an application")
            .detail("What it may do holds from its next call on.")
            .body::<AppCreate>()
            .refuses(["BadRequest"])
            .answers::<App>(200),
        delete("/api/cordon/v1/apps/{app}", Requirement::ADMINISTER, app::revoke)
            .summary("Revoke an application")
            .refuses(["BadRequest"])
            .answers_nothing(),
        post("/api/cordon/v1/apps/{app}/secret", Requirement::ADMINISTER, app::renew_secret)
            .summary("Give an application another secret")
            .detail("The reply has it, this once; the old one counts no more.")
            .refuses(["BadRequest"])
            .answers::<AppSecret>(201),
        get("/api/cordon/v1/apps/{app}/keys", Requirement::ADMINISTER, app::list_keys)
            .summary("List the keys with which an application signs its assertions")
            .answers::<Collection<AppKey>>(200),
        post("/api/cordon/v1/apps/{app}/keys", Requirement::ADMINISTER, app::add_key)
            .summary("Let an application sign its assertions with a key")
            .body::<AppKeyCreate>()
            .refuses(["BadRequest"])
            .answers::<AppKey>(201),
        delete("/api/cordon/v1/apps/{app}/keys/{thumbprint}", Requirement::ADMINISTER, app::remove_key)
            .summary("Take a key from an application")
            .answers_nothing(),
        get("/api/cordon/v1/users", Requirement::ADMINISTER, user::list)
            .summary("List accounts")
            .answers::<Collection<User>>(200),
        post("/api/cordon/v1/users", Requirement::ADMINISTER, user::create)
            .summary("Make an account")
            .detail("The reply has its password, this once, when the request has none.")
            .body::<UserCreate>()
            .answers::<UserCreated>(201),
        get("/api/cordon/v1/users/{user}", Requirement::ADMINISTER, user::fetch)
            .summary("Fetch an account")
            .answers::<User>(200),
        patch("/api/cordon/v1/users/{user}", Requirement::ADMINISTER, user::update)
            .summary("Change an account")
            .body::<UserUpdate>()
            .answers::<User>(200),
        delete("/api/cordon/v1/users/{user}", Requirement::ADMINISTER, user::delete)
            .summary("Delete an account")
            .answers_nothing(),
        get("/api/cordon/v1/roles", Requirement::ADMINISTER, role::list)
            .summary("List roles")
            .answers::<Collection<Role>>(200),
        get("/api/cordon/v1/roles/{role}", Requirement::ADMINISTER, role::fetch)
            .summary("Fetch a role")
            .answers::<Role>(200),
        put("/api/cordon/v1/roles/{role}", Requirement::ADMINISTER, role::save)
            .summary("Make or change a role")
            .body::<Role>()
            .refuses(["DisallowedOperation"])
            .answers::<Role>(200),
        delete("/api/cordon/v1/roles/{role}", Requirement::ADMINISTER, role::delete)
            .summary("Delete a role")
            .refuses(["DisallowedOperation"])
            .answers_nothing(),
        get("/api/cordon/v1/machineGroups", Requirement::ADMINISTER, machine_group::list)
            .summary("List machine groups, highest rank first")
            .answers::<Collection<MachineGroup>>(200),
        get("/api/cordon/v1/machineGroups/{machineGroup}", Requirement::ADMINISTER, machine_group::fetch)
            .summary("Fetch a machine group")
            .answers::<MachineGroup>(200),
        put("/api/cordon/v1/machineGroups/{machineGroup}", Requirement::ADMINISTER, machine_group::save)
            .summary("Make or change a machine group")
            .detail("Every machine is in the right group when this answers.")
            .body::<MachineGroupDocument>()
            .refuses(["DisallowedOperation"])
            .answers::<MachineGroup>(200),
        delete("/api/cordon/v1/machineGroups/{machineGroup}", Requirement::ADMINISTER, machine_group::delete)
            .summary("Delete a machine group")
            .detail("Its machines go to the next group whose rule takes them.")
            .refuses(["DisallowedOperation"])
            .answers_nothing(),
        post(
            "/api/cordon/v1/machineGroups/{machineGroup}/preview",
            Requirement::ADMINISTER,
            machine_group::preview,
        )
        .summary("Tell what saving a machine group would do")
        .body::<MachineGroupDocument>()
        .refuses(["DisallowedOperation"])
        .answers::<MachineGroupPreview>(200),
        get("/api/cordon/v1/enrollmentTokens", Requirement::ADMINISTER_SECURITY, enrollment_token::list)
            .summary("List enrollment tokens")
            .answers::<Collection<EnrollmentToken>>(200),
        post("/api/cordon/v1/enrollmentTokens", Requirement::ADMINISTER_SECURITY, enrollment_token::create)
            .summary("Make an enrollment token")
            .detail("The reply has its secret, this once, and the command to run on a machine.")
            .body::<EnrollmentTokenCreate>()
            .answers::<EnrollmentTokenCreated>(201),
        delete(
            "/api/cordon/v1/enrollmentTokens/{token}",
            Requirement::ADMINISTER_SECURITY,
            enrollment_token::revoke,
        )
        .summary("Revoke an enrollment token")
        .answers_nothing(),
        get("/api/cordon/v1/policies", Requirement::READ_OR_ADMINISTER, policy::list)
            .summary("List allow policies")
            .answers::<Collection<Policy>>(200),
        get("/api/cordon/v1/policies/{policy}", Requirement::READ_OR_ADMINISTER, policy::fetch)
            .summary("Fetch an allow policy")
            .answers::<Policy>(200),
        put("/api/cordon/v1/policies/{policy}", Requirement::ADMINISTER_SECURITY, policy::apply)
            .summary("Make or change an allow policy")
            .detail("Nothing happens when it is the same as stored. With `dryRun=true`, nothing happens at all.")
            .query::<ApplyQuery>()
            .body::<PolicyDocument>()
            .answers::<PolicyApplied>(200),
        get("/api/cordon/v1/policies/{policy}/revisions", Requirement::READ_OR_ADMINISTER, policy::revisions)
            .summary("List the revisions of an allow policy, newest first")
            .answers::<Collection<Policy>>(200),
        get("/api/cordon/v1/policies/{policy}/diff", Requirement::READ_OR_ADMINISTER, policy::diff)
            .summary("Tell what differs between two revisions of an allow policy")
            .query::<DiffQuery>()
            .answers::<PolicyChange>(200),
        get("/api/cordon/v1/settings", Requirement::ADMINISTER, settings::list)
            .summary("List settings")
            .answers::<Collection<Setting>>(200),
        patch("/api/cordon/v1/settings", Requirement::ADMINISTER, settings::update)
            .summary("Change settings")
            .body::<SettingsUpdate>()
            .answers::<Collection<Setting>>(200),
    ]
});

/// Everything on the public listener: the API, the token issuer, and the enrollment of machines.
pub(crate) fn public(state: AppState) -> Router {
    let mut api = Router::new();
    for route in ROUTES.iter() {
        let gate = Gate { state: state.clone(), required: route.required };
        // Not `layer`: a wrong method is to be answered with 405 whoever asks.
        let handler = route.handler.clone().route_layer(middleware::from_fn_with_state(gate, auth::pass));
        api = api.route(&spelling::without_call(route.path), handler);
    }
    let routes = api
        .merge(openapi::routes())
        .merge(issuer::routes())
        .merge(agents::public_routes())
        .layer(middleware::from_fn(answer::answer))
        .with_state(state);
    // Around the router, because it chooses the route by the path.
    Router::new().fallback_service(routes.map_request(spelling::canonical))
}
