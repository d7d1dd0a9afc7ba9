//! The list of the API's routes, and the layers that every request passes.
//!
//! [`ROUTES`] is the only list: the router is built from it, paths are matched against it, and the tests read it.
//! Deliberately holds no handler: those are in `routes`, a file for each noun.

pub(crate) mod answer;
mod spelling;
mod unread;

use axum::Router;
use axum::http::Method;
use axum::middleware;
use axum::routing::{MethodRouter, delete, get, post, put};
use domain::permission::Requirement;
use tower::ServiceExt as _;

use crate::auth::{self, Gate};
use crate::routes::{app, audit_entry, enrollment_token, execution_event, machine, machine_action, policy};
use crate::state::AppState;
use crate::{agents, issuer};

/// One route of the API.
#[derive(Debug)]
pub struct Route {
    /// Its method.
    pub method: Method,
    /// Its path, with parameters in braces. Its fixed segments match without regard to case, also below `/api/v1.0`.
    pub path: &'static str,
    /// What its callers must hold.
    pub required: Requirement,
    handler: fn() -> MethodRouter<AppState>,
}

/// Every route of the API. Of two that match a path, the first counts.
pub static ROUTES: &[Route] = &[
    route(Method::GET, "/api/machines", Requirement::READ, || get(machine::list)),
    route(Method::GET, "/api/machines/$count", Requirement::READ, || get(machine::count)),
    route(Method::GET, "/api/machines/{machine}", Requirement::READ, || get(machine::fetch)),
    route(Method::GET, "/api/machines/{machine}/machineactions", Requirement::READ, || {
        get(machine_action::list_of_machine)
    }),
    route(Method::POST, "/api/machines/{machine}/restrictCodeExecution", Requirement::RESTRICT, || {
        post(machine::restrict)
    }),
    route(Method::POST, "/api/machines/{machine}/unrestrictCodeExecution", Requirement::RESTRICT, || {
        post(machine::unrestrict)
    }),
    route(Method::GET, "/api/machineactions", Requirement::READ, || get(machine_action::list)),
    route(Method::GET, "/api/machineactions/$count", Requirement::READ, || get(machine_action::count)),
    route(Method::GET, "/api/machineactions/{action}", Requirement::READ, || get(machine_action::fetch)),
    route(Method::POST, "/api/machineactions/{action}/cancel", Requirement::RESTRICT, || {
        post(machine_action::cancel)
    }),
    route(Method::GET, "/api/cordon/v1/machineactions/{action}/receipt", Requirement::READ, || {
        get(machine_action::receipt)
    }),
    route(Method::GET, "/api/cordon/v1/executionEvents", Requirement::READ, || get(execution_event::list)),
    route(Method::GET, "/api/cordon/v1/auditEntries", Requirement::ADMINISTER, || get(audit_entry::list)),
    route(Method::GET, "/api/cordon/v1/apps", Requirement::ADMINISTER, || get(app::list)),
    route(Method::POST, "/api/cordon/v1/apps", Requirement::ADMINISTER, || post(app::create)),
    route(Method::DELETE, "/api/cordon/v1/apps/{app}", Requirement::ADMINISTER, || delete(app::revoke)),
    route(Method::GET, "/api/cordon/v1/enrollmentTokens", Requirement::ADMINISTER, || {
        get(enrollment_token::list)
    }),
    route(Method::POST, "/api/cordon/v1/enrollmentTokens", Requirement::ADMINISTER, || {
        post(enrollment_token::create)
    }),
    route(Method::DELETE, "/api/cordon/v1/enrollmentTokens/{token}", Requirement::ADMINISTER, || {
        delete(enrollment_token::revoke)
    }),
    route(Method::GET, "/api/cordon/v1/policies", Requirement::READ_OR_ADMINISTER, || get(policy::list)),
    route(Method::GET, "/api/cordon/v1/policies/{policy}", Requirement::READ_OR_ADMINISTER, || {
        get(policy::fetch)
    }),
    route(Method::PUT, "/api/cordon/v1/policies/{policy}", Requirement::ADMINISTER, || put(policy::apply)),
];

const fn route(
    method: Method,
    path: &'static str,
    required: Requirement,
    handler: fn() -> MethodRouter<AppState>,
) -> Route {
    Route { method, path, required, handler }
}

/// Everything on the public listener: the API, the token issuer, and the enrollment of machines.
pub(crate) fn public(state: AppState) -> Router {
    let mut api = Router::new();
    for route in ROUTES {
        let gate = Gate { state: state.clone(), required: route.required };
        // Not `layer`: a wrong method is to be answered with 405 whoever asks.
        let handler = (route.handler)().route_layer(middleware::from_fn_with_state(gate, auth::pass));
        api = api.route(route.path, handler);
    }
    let routes = api
        .merge(issuer::routes())
        .merge(agents::public_routes())
        .layer(middleware::from_fn(answer::answer))
        .with_state(state);
    // Around the router, because it chooses the route by the path.
    Router::new().fallback_service(routes.map_request(spelling::canonical))
}
