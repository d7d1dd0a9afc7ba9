//! One route, and everything that is said of it: what the router needs, and what the API document tells clients.
//!
//! A route is written as one chain that begins with its method and ends with what it answers:
//! `post(path, required, handler).summary(..).body::<T>().refuses([..]).answers::<T>(201)`. Without its end it is no
//! [`Route`], and what cannot be checked by the compiler is checked by the tests of `openapi`. Deliberately says nothing
//! that follows from the rest: the operation's id is the handler's name, and `openapi` knows what every path parameter,
//! list and body brings with it.

use axum::handler::Handler;
use axum::http::Method;
use axum::routing::{MethodFilter, MethodRouter, on};
use domain::permission::Requirement;
use odata::Schema;
use serde::Serialize;
use serde::de::DeserializeOwned;
use utoipa::openapi::path::{Parameter, ParameterIn};
use utoipa::openapi::{self, RefOr};
use utoipa::{IntoParams, ToSchema};

use crate::state::AppState;

/// One route of the API.
pub struct Route {
    /// Its method.
    pub method: Method,
    /// Its path, with parameters in braces. Its fixed segments match without regard to case, also below `/api/v1.0`.
    pub path: &'static str,
    /// What its callers must hold.
    pub required: Requirement,
    /// The media type of its reply; none when the reply has no body.
    pub media_type: Option<&'static str>,
    pub(super) handler: MethodRouter<AppState>,
    pub(crate) docs: Docs,
}

/// What the API document says of a route, beside what follows from the route itself.
pub(crate) struct Docs {
    /// The module of the handler, such as `machine_action`.
    pub(crate) noun: &'static str,
    /// `noun_verb`: the module and the name of the handler.
    pub(crate) operation: String,
    /// What it does, in a few words.
    pub(crate) summary: &'static str,
    /// What else is worth knowing.
    pub(crate) details: Vec<&'static str>,
    /// The query options of a list.
    pub(crate) odata: Option<(Options, &'static Schema)>,
    /// Other parameters of the query.
    pub(crate) query: Vec<Parameter>,
    /// The headers of the request that it heeds.
    pub(crate) request_headers: Vec<&'static str>,
    /// The body of the request.
    pub(crate) body: Option<Shape>,
    /// Codes of errors that do not follow from the rest.
    pub(crate) refuses: Vec<&'static str>,
    /// The status of success.
    pub(crate) status: u16,
    /// The body of success, when it is JSON.
    pub(crate) reply: Option<Shape>,
    /// Another status of success, when there is one.
    pub(crate) other_status: Option<u16>,
    /// Another media type that the reply has when the request asks for it.
    pub(crate) media_type_by_wish: Option<&'static str>,
}

/// Which query options a route knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Options {
    /// All.
    List,
    /// Those that choose rows.
    Count,
}

/// A type of `api-types`, as the document shows it.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) name: fn() -> String,
    pub(crate) schema: fn() -> RefOr<openapi::Schema>,
    /// Adds the types that it refers to.
    pub(crate) add_parts: fn(&mut Vec<(String, RefOr<openapi::Schema>)>),
    /// Reads JSON as the type and writes it again: examples must survive that.
    #[cfg(test)]
    pub(crate) round_trip: fn(serde_json::Value) -> serde_json::Result<serde_json::Value>,
}

impl Shape {
    pub(crate) fn of<T: ToSchema + Serialize + DeserializeOwned>() -> Self {
        Self {
            name: || T::name().into_owned(),
            schema: T::schema,
            add_parts: T::schemas,
            #[cfg(test)]
            round_trip: |value| serde_json::to_value(serde_json::from_value::<T>(value)?),
        }
    }
}

/// A route whose answer is not said yet.
#[must_use]
pub(crate) struct Draft(Route);

/// `GET`.
pub(crate) fn get<H: Handler<T, AppState>, T: 'static>(
    path: &'static str,
    required: Requirement,
    handler: H,
) -> Draft {
    draft(Method::GET, MethodFilter::GET, path, required, handler)
}

/// `POST`.
pub(crate) fn post<H: Handler<T, AppState>, T: 'static>(
    path: &'static str,
    required: Requirement,
    handler: H,
) -> Draft {
    draft(Method::POST, MethodFilter::POST, path, required, handler)
}

/// `PUT`.
pub(crate) fn put<H: Handler<T, AppState>, T: 'static>(
    path: &'static str,
    required: Requirement,
    handler: H,
) -> Draft {
    draft(Method::PUT, MethodFilter::PUT, path, required, handler)
}

/// `PATCH`.
pub(crate) fn patch<H: Handler<T, AppState>, T: 'static>(
    path: &'static str,
    required: Requirement,
    handler: H,
) -> Draft {
    draft(Method::PATCH, MethodFilter::PATCH, path, required, handler)
}

/// `DELETE`.
pub(crate) fn delete<H: Handler<T, AppState>, T: 'static>(
    path: &'static str,
    required: Requirement,
    handler: H,
) -> Draft {
    draft(Method::DELETE, MethodFilter::DELETE, path, required, handler)
}

fn draft<H: Handler<T, AppState>, T: 'static>(
    method: Method,
    filter: MethodFilter,
    path: &'static str,
    required: Requirement,
    handler: H,
) -> Draft {
    // `cordon_server::routes::machine::list`: the test of the committed document notices when this looks otherwise.
    let mut names = std::any::type_name::<H>().rsplit("::");
    let (verb, noun) = (names.next().unwrap_or_default(), names.next().unwrap_or_default());
    let docs = Docs {
        noun,
        operation: format!("{noun}_{verb}"),
        summary: "",
        details: Vec::new(),
        odata: None,
        query: Vec::new(),
        request_headers: Vec::new(),
        body: None,
        refuses: Vec::new(),
        status: 200,
        reply: None,
        other_status: None,
        media_type_by_wish: None,
    };
    Draft(Route { method, path, required, media_type: None, handler: on(filter, handler), docs })
}

impl Draft {
    /// What it does, in a few words: required.
    pub(crate) fn summary(mut self, summary: &'static str) -> Self {
        self.0.docs.summary = summary;
        self
    }

    /// A sentence more.
    pub(crate) fn detail(mut self, detail: &'static str) -> Self {
        self.0.docs.details.push(detail);
        self
    }

    /// A list that knows all query options.
    pub(crate) fn odata(mut self, schema: &'static Schema) -> Self {
        self.0.docs.odata = Some((Options::List, schema));
        self
    }

    /// A number of rows, chosen by query options.
    pub(crate) fn odata_count(mut self, schema: &'static Schema) -> Self {
        self.0.docs.odata = Some((Options::Count, schema));
        self
    }

    /// Parameters of the query, by the names and comments of a type's fields.
    pub(crate) fn query<T: IntoParams>(mut self) -> Self {
        self.0.docs.query = T::into_params(|| Some(ParameterIn::Query));
        self
    }

    /// Heeds headers of the request, by their names in `openapi`, such as `Prefer`.
    pub(crate) fn heeds<const N: usize>(mut self, headers: [&'static str; N]) -> Self {
        self.0.docs.request_headers.extend(headers);
        self
    }

    /// Reads a JSON body. That it can be malformed, lack something or be too long goes without saying.
    pub(crate) fn body<T: ToSchema + Serialize + DeserializeOwned>(mut self) -> Self {
        self.0.docs.body = Some(Shape::of::<T>());
        self
    }

    /// Errors by their codes, beside those that go without saying.
    pub(crate) fn refuses<const N: usize>(mut self, codes: [&'static str; N]) -> Self {
        self.0.docs.refuses.extend(codes);
        self
    }

    /// Succeeds with this status and JSON.
    pub(crate) fn answers<T: ToSchema + Serialize + DeserializeOwned>(mut self, status: u16) -> Route {
        self.0.docs.reply = Some(Shape::of::<T>());
        self.0.docs.status = status;
        self.answers_with("application/json")
    }

    /// Succeeds with 200 and a body of another media type.
    pub(crate) fn answers_with(mut self, media_type: &'static str) -> Route {
        self.0.media_type = Some(media_type);
        self.0
    }

    /// May succeed with another status than the end of the chain says, and the same type.
    pub(crate) fn or_status(mut self, status: u16) -> Self {
        self.0.docs.other_status = Some(status);
        self
    }

    /// May succeed with another media type than the end of the chain says.
    pub(crate) fn by_wish(mut self, media_type: &'static str) -> Self {
        self.0.docs.media_type_by_wish = Some(media_type);
        self
    }

    /// Succeeds with 204 and no body.
    pub(crate) fn answers_nothing(mut self) -> Route {
        self.0.docs.status = 204;
        self.0
    }
}

impl std::fmt::Debug for Route {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.method, self.path)
    }
}
