//! The API document, OpenAPI 3.1: generated from [`ROUTES`] and the types of `api-types`, served at `/openapi.json`,
//! and committed as `docs/openapi.json`.
//!
//! Owns what the document says beside the routes' own words: path parameters, query options, headers, errors. What the
//! router does is never repeated here, so that it cannot be told wrong. The token issuer's endpoints are no
//! [`ROUTES`]: `issuer` describes them by hand, and a test calls each.

pub(crate) mod schemas;

mod errors;
mod issuer;

use std::collections::BTreeMap;
use std::sync::LazyLock;

use axum::Router;
use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use axum::routing::get;
use domain::permission::Permission;
use odata::{Schema, TOP_MAX, Type};
use serde_json::{Map, Value, json};

use crate::router::{Options, ROUTES, Route};
use crate::state::AppState;
use schemas::{SCHEMAS, example};

/// Where the document is served.
const PATH: &str = "/openapi.json";
/// Stands for the deployment's tenant in the committed document.
const TENANT: &str = "00000000-0000-0000-0000-000000000000";

static DOCUMENT: LazyLock<String> = LazyLock::new(|| {
    let mut text = serde_json::to_string_pretty(&document()).unwrap_or_default();
    text.push('\n');
    text
});

/// The document as it is committed: for no tenant.
pub fn committed() -> &'static str {
    &DOCUMENT
}

/// The route of the document, to merge into the public router. Who wants to call the API needs it before a token.
pub(crate) fn routes() -> Router<AppState> {
    Router::new().route(PATH, get(fetch))
}

async fn fetch(State(state): State<AppState>) -> impl IntoResponse {
    let tenant = state.issuer.tenant().to_string();
    ([(header::CONTENT_TYPE, "application/json")], DOCUMENT.replace(TENANT, &tenant))
}

fn document() -> Value {
    let mut paths: BTreeMap<&str, Map<String, Value>> = BTreeMap::new();
    for route in ROUTES.iter() {
        paths.entry(route.path).or_default().insert(method(route), operation(route));
    }
    let mut paths: Map<String, Value> =
        paths.into_iter().map(|(path, item)| (path.to_owned(), item.into())).collect();
    paths.extend(issuer::paths());
    paths.insert(PATH.to_owned(), own_operation());
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Cordon",
            "version": env!("CARGO_PKG_VERSION"),
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
            "description": INTRODUCTION,
        },
        "servers": [{"url": "/", "description": "The server that this document comes from"}],
        "tags": tags(),
        "paths": paths,
        "components": {
            "schemas": *SCHEMAS,
            "headers": headers(),
            "securitySchemes": security_schemes(),
        },
    })
}

const INTRODUCTION: &str = "\
Restricts execution of all applications on a machine except a predefined set, and proves that it happened. \
Speaks the machine-action API of Microsoft Defender for Endpoint; what is Cordon's own lies under `/api/cordon/v1`.

Fixed path segments match without regard to case, `/api/v1.0/...` is `/api/...`, and a slash at the end does not count. \
Replies that are no success carry the envelope `{\"error\": {\"code\", \"message\", \"target\"}}`, where `target` is the \
correlation id that the `x-request-id` header and the server's log have too. This holds also for what no operation \
lists: 404 `NotFound` for a path that is no route, and 405 `MethodNotAllowed` for a method that a route does not know.

JSON objects in requests may have keys that are not listed here; they are ignored, unless a schema says otherwise. \
Objects in replies may get more.";

fn method(route: &Route) -> String {
    route.method.as_str().to_ascii_lowercase()
}

fn operation(route: &Route) -> Value {
    let docs = &route.docs;
    let permissions: Vec<&str> = route.required.permissions.iter().map(|held| held.name()).collect();
    let needs = format!(
        "Needs the permission {}; a person needs a role with the right *{}*.",
        permissions.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(" or "),
        route.required.right.name(),
    );
    let description: Vec<&str> = docs.details.iter().copied().chain([needs.as_str()]).collect();
    let security: Vec<Value> = ["oauth2", "bearer"]
        .into_iter()
        .flat_map(|scheme| permissions.iter().map(move |name| json!({scheme: [name]})))
        .collect();
    let mut operation = json!({
        "operationId": docs.operation,
        "tags": [docs.noun],
        "summary": docs.summary,
        "description": description.join(" "),
        "security": security,
        "parameters": parameters(route),
        "responses": responses(route),
    });
    if let (Some(body), Some(operation)) = (&docs.body, operation.as_object_mut()) {
        let content = json!({"application/json": media(body)});
        operation.insert("requestBody".to_owned(), json!({"required": true, "content": content}));
    }
    operation
}

/// A type as a body: a reference when it is one of the document's schemas, and its example.
fn media(shape: &crate::router::Shape) -> Value {
    let schema = schemas::reference(shape);
    json!({"schema": schema, "example": example(&schema)})
}

fn parameters(route: &Route) -> Vec<Value> {
    let docs = &route.docs;
    let mut parameters: Vec<Value> = path_parameters(route.path).map(path_parameter).collect();
    if let Some((options, schema)) = docs.odata {
        parameters.extend(query_options(options, schema));
    }
    parameters.extend(docs.query.iter().filter_map(|parameter| serde_json::to_value(parameter).ok()));
    parameters.extend(docs.request_headers.iter().map(|name| request_header(name)));
    parameters
}

/// The names in braces.
fn path_parameters(path: &str) -> impl Iterator<Item = &str> {
    path.split('{').skip(1).filter_map(|part| part.split('}').next())
}

/// What a parameter of a path is. A test demands an entry for each that a route has.
const PATH_PARAMETERS: &[(&str, &str, &str, &str)] = &[
    (
        "machine",
        "",
        "0f3c9a7be1d2445566778899aabbccddeeff0011",
        "The machine's id, or a name that it alone has",
    ),
    ("action", "uuid", "b7a2f0de-31c4-4a77-9a0e-5d2f6c1e8843", "The machine action's id"),
    ("app", "uuid", "0d0c7b1e-9f55-4c0b-8f0e-2f7a6a1b3c4d", "The application's id"),
    ("token", "uuid", "5f0e2a51-7a55-4f0c-9a3b-2a0d2b6f1c11", "The enrollment token's id"),
    (
        "thumbprint",
        "",
        "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        "The key's thumbprint",
    ),
    ("user", "", "ann@example.com", "The person's user name"),
    ("role", "", "responders", "The role's name"),
    ("machineGroup", "", "Finance", "The machine group's name"),
    ("ip", "ip", "10.0.0.5", "An address of the machine"),
    ("timestamp", "date-time", "2026-11-23T11:38:59Z", "When the machine had it: at most 30 days ago"),
    ("policy", "", "default", "The policy's name"),
];

fn path_parameter(name: &str) -> Value {
    let known = PATH_PARAMETERS.iter().find(|parameter| parameter.0 == name);
    let (format, example, description) =
        known.map_or(("", "", ""), |(_, format, example, description)| (*format, *example, *description));
    let schema = match format {
        "" => json!({"type": "string", "minLength": 1}),
        "ip" => json!({"type": "string", "anyOf": [{"format": "ipv4"}, {"format": "ipv6"}]}),
        _ => json!({"type": "string", "format": format}),
    };
    json!({
        "name": name, "in": "path", "required": true, "description": description, "schema": schema,
        "example": example,
    })
}

/// The query options of OData, in the words of what the list knows.
fn query_options(options: Options, schema: &Schema) -> Vec<Value> {
    let properties: Vec<String> = schema.properties.iter().map(|p| format!("`{}`", p.name)).collect();
    let enums: Vec<String> = schema
        .properties
        .iter()
        .filter_map(|property| match property.kind {
            Type::Enum(names) => Some(format!("`{}`: {}", property.name, names.join(", "))),
            Type::String | Type::Strings | Type::Guid | Type::DateTime | Type::Integer | Type::Boolean => {
                None
            }
        })
        .collect();
    let filter = format!(
        "Which rows. Operators: `eq ne gt ge lt le`, `in ('a','b')`, `and or not`, parentheses; functions: \
         `startswith(p,'x')`, `endswith(p,'x')`, `contains(p,'x')`, and for collections `p/any(t: t eq 'x')`. Strings \
         and names are in single quotes, and a quote in them is written twice; times are not quoted: \
         `2026-01-31T00:00:00Z`. Properties, without regard to case: {}. Names: {}.",
        properties.join(", "),
        enums.join("; ")
    );
    let names = schema.properties.iter().filter(|property| !matches!(property.kind, Type::Strings));
    let names: Vec<&str> = names.map(|property| property.name).collect();
    let option = |name: &str, description: &str, schema: Value, example: Value| {
        json!({
            "name": name, "in": "query", "description": description, "schema": schema, "example": example,
        })
    };
    let text = |pattern: Option<String>| match pattern {
        None => json!({"type": "string", "minLength": 1}),
        Some(pattern) => json!({"type": "string", "pattern": pattern}),
    };
    let filter = option("$filter", &filter, text(None), filter_example(schema).into());
    if options == Options::Count {
        return vec![filter];
    }
    let order = format!("({})( (asc|desc))?", names.join("|"));
    let fields = format!("({})", schema.fields.join("|"));
    vec![
        filter,
        option(
            "$orderby",
            "What to order by: properties that `$filter` knows, each with `asc` or `desc`. Made total by `id`.",
            text(Some(format!("^{order}$"))),
            "id desc".into(),
        ),
        option(
            "$select",
            "Which fields the rows are to have.",
            text(Some(format!("^{fields}$"))),
            "id".into(),
        ),
        option(
            "$top",
            "How many rows at most. When given, there is no `@odata.nextLink`.",
            json!({"type": "integer", "minimum": 0, "maximum": TOP_MAX}),
            100.into(),
        ),
        option(
            "$skip",
            "How many rows to leave out. To page through a list, follow `@odata.nextLink`, which misses none.",
            json!({"type": "integer", "minimum": 0, "maximum": u32::MAX}),
            0.into(),
        ),
        option(
            "$count",
            "Whether to say in `@odata.count` how many rows match in all.",
            json!({"type": "boolean"}),
            true.into(),
        ),
    ]
}

/// A filter by the first property that has names.
fn filter_example(schema: &Schema) -> String {
    let named = schema.properties.iter().find_map(|property| match property.kind {
        Type::Enum(names) => names.first().map(|name| format!("{} eq '{name}'", property.name)),
        Type::String | Type::Strings | Type::Guid | Type::DateTime | Type::Integer | Type::Boolean => None,
    });
    named.unwrap_or_else(|| "id eq 'x'".to_owned())
}

/// The headers of requests that routes heed.
fn request_header(name: &str) -> Value {
    let (description, schema, example) = match name {
        "Idempotency-Key" => (
            "Names this request: sent again with the same key, the first reply is given again and nothing else happens.",
            json!({"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]+$"}),
            "0b0c5b1e-6f5f-4b7e-8a53-6a6f4f9c2d10",
        ),
        "Prefer" => (
            "`wait=N` holds the reply until the action is final, or N seconds at most. Other preferences are ignored.",
            json!({"type": "string"}),
            "wait=5",
        ),
        _ => ("", json!({"type": "string"}), ""),
    };
    json!({"name": name, "in": "header", "description": description, "schema": schema, "example": example})
}

fn responses(route: &Route) -> Value {
    let docs = &route.docs;
    let mut reply = json!({"description": success(docs.status), "headers": {"x-request-id": header_reference("x-request-id")}});
    if let Some(reply) = reply.as_object_mut() {
        if docs.request_headers.contains(&"Prefer")
            && let Some(headers) = reply.get_mut("headers").and_then(Value::as_object_mut)
        {
            headers.insert("Preference-Applied".to_owned(), header_reference("Preference-Applied"));
        }
        if let Some(media_type) = route.media_type {
            let mut media = docs.reply.as_ref().map_or_else(|| json!({"schema": {"type": "string"}}), media);
            if docs.odata.is_some()
                && let Some(Value::Object(list)) = media.get_mut("example")
            {
                let set = "https://cordon.example/api/$metadata#MachineActions";
                list.insert("@odata.context".to_owned(), set.into());
            }
            if let Some((Options::List, _)) = docs.odata
                && let Some(schema) = media.get_mut("schema")
            {
                *schema = json!({"anyOf": [schema, schemas::selected(schema)]});
            }
            let mut content = Map::new();
            if let Some(by_wish) = docs.media_type_by_wish {
                content.insert(by_wish.to_owned(), media.clone());
            }
            content.insert(media_type.to_owned(), media);
            reply.insert("content".to_owned(), content.into());
        }
    }
    let mut responses = Map::new();
    if let Some(status) = docs.other_status {
        let mut other = reply.clone();
        if let Some(other) = other.as_object_mut() {
            other.insert("description".to_owned(), success(status).into());
        }
        responses.insert(status.to_string(), other);
    }
    responses.insert(docs.status.to_string(), reply);
    responses.extend(errors::responses(&codes(route)));
    responses.into()
}

fn success(status: u16) -> &'static str {
    match status {
        201 => "Made",
        202 => "Accepted",
        204 => "Done; there is no body",
        _ => "Success",
    }
}

/// The codes of the errors that a route can answer.
fn codes(route: &Route) -> Vec<&'static str> {
    let docs = &route.docs;
    let mut codes =
        vec!["Unauthorized", "Forbidden", "TooManyRequests", "InternalServerError", "ServiceUnavailable"];
    for name in path_parameters(route.path) {
        codes.push("ResourceNotFound");
        if name == "machine" {
            // A name that several machines have.
            codes.push("InvalidInput");
        }
    }
    if docs.odata.is_some() {
        codes.push("ODataError");
    }
    if !docs.query.is_empty() {
        codes.push("InvalidInput");
    }
    if docs.body.is_some() {
        codes.extend(["InvalidRequestBody", "BodyTooLarge", "MissingRequiredParameter", "InvalidInput"]);
    }
    codes.extend(&docs.refuses);
    codes.sort_unstable();
    codes.dedup();
    codes
}

fn header_reference(name: &str) -> Value {
    json!({"$ref": format!("#/components/headers/{name}")})
}

fn headers() -> Value {
    json!({
        "x-request-id": {
            "description": "The correlation id, which the server's log has too.",
            "required": true,
            "schema": {"type": "string", "format": "uuid"},
        },
        "Retry-After": {
            "description": "After how many seconds a further attempt can succeed.",
            "required": true,
            "schema": {"type": "integer", "minimum": 0},
        },
        "WWW-Authenticate": {
            "description": "What kind of token is wanted, and why the one given is refused (RFC 6750).",
            "required": true,
            "schema": {"type": "string"},
        },
        "Location": {
            "description": "Where the person is sent.",
            "required": true,
            "schema": {"type": "string"},
        },
        "Preference-Applied": {
            "description": "The preference that was honored.",
            "schema": {"type": "string"},
        },
    })
}

fn security_schemes() -> Value {
    let scopes: Map<String, Value> =
        Permission::ALL.iter().map(|held| (held.name().to_owned(), permission(*held).into())).collect();
    json!({
        "oauth2": {
            "type": "oauth2",
            "description": "An application, by its secret. Its permissions are those that it was given, whatever scope \
                            is asked for.",
            "flows": {"clientCredentials": {
                "tokenUrl": format!("/{TENANT}/oauth2/v2.0/token"),
                "scopes": scopes,
            }},
        },
        "bearer": {
            "type": "http",
            "scheme": "bearer",
            "bearerFormat": "JWT",
            "description": "A token of this issuer, or of another that the deployment trusts. An application's token \
                            has its permissions in `roles`, a person's in `scp`.",
        },
    })
}

fn permission(permission: Permission) -> &'static str {
    match permission {
        Permission::MachineReadAll => "Read machines and machine actions",
        Permission::MachineReadWriteAll => "Read and change machines, read machine actions",
        Permission::MachineRestrictExecution => {
            "Restrict and unrestrict execution, cancel such actions; does not include reading"
        }
        Permission::CordonBulkRemediation => {
            "Restrict and unrestrict more machines at once than the blast-radius limit admits"
        }
        Permission::CordonBreakGlass => {
            "See the break-glass codes of machines, which lift a restriction on the machine itself"
        }
        Permission::CordonAdminister => {
            "Administer apps, people, groups, enrollment tokens, policies and settings, and read the audit log"
        }
    }
}

/// The nouns that have operations, in the order of the router.
fn tags() -> Vec<Value> {
    let mut nouns: Vec<&str> = ROUTES.iter().map(|route| route.docs.noun).chain([issuer::TAG]).collect();
    let mut seen = Vec::new();
    nouns.retain(|noun| {
        let first = !seen.contains(noun);
        seen.push(noun);
        first
    });
    nouns.into_iter().map(|noun| json!({"name": noun})).collect()
}

fn own_operation() -> Value {
    json!({"get": {
        "operationId": "openapi_fetch",
        "tags": ["metadata"],
        "summary": "Fetch this document",
        "description": "Needs no token.",
        "security": [],
        "responses": {
            "200": {
                "description": "Success",
                "headers": {"x-request-id": header_reference("x-request-id")},
                "content": {"application/json": {"schema": {"type": "object"}}},
            },
            "500": errors::response(500, &["InternalServerError"]),
            "503": errors::response(503, &["ServiceUnavailable"]),
        },
    }})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_route_is_documented() {
        let mut operations = Vec::new();
        for route in ROUTES.iter() {
            let docs = &route.docs;
            assert!(!docs.summary.is_empty(), "{route:?} has no summary: end it before .answers()");
            assert!(!docs.summary.ends_with('.'), "{route:?}: a summary is no sentence");
            for name in path_parameters(route.path) {
                assert!(
                    PATH_PARAMETERS.iter().any(|parameter| parameter.0 == name),
                    "{route:?}: say in PATH_PARAMETERS what {{{name}}} is"
                );
            }
            for code in codes(route) {
                assert!(errors::is_known(code), "{route:?}: errors.rs does not list {code}");
            }
            for header in &docs.request_headers {
                assert_ne!(request_header(header)["description"], "", "{route:?}: what is {header}?");
            }
            assert!(!operations.contains(&&docs.operation), "two routes are {}", docs.operation);
            operations.push(&docs.operation);
        }
    }

    #[test]
    fn every_example_is_one_of_its_type() {
        for route in ROUTES.iter() {
            for shape in [&route.docs.body, &route.docs.reply].into_iter().flatten() {
                let example = example(&schemas::reference(shape));
                let again = (shape.round_trip)(example.clone()).unwrap_or_else(|error| {
                    panic!("{route:?}: {error}: {example:#}");
                });
                // What it leaves out may be there, with its default.
                for (key, value) in example.as_object().into_iter().flatten() {
                    assert_eq!(again.get(key), Some(value), "{route:?}: {key}");
                }
            }
        }
    }

    #[test]
    fn every_text_has_an_example() {
        let missing = schemas::texts_without_example();
        assert!(missing.is_empty(), "add #[schema(examples(\"...\"))] to {missing:#?}");
    }

    #[test]
    fn the_committed_document_is_this_one() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/openapi.json");
        let written = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            written == committed(),
            "docs/openapi.json is not what the code says: run `cargo xtask openapi`"
        );
    }

    #[test]
    fn the_tenant_stands_only_where_it_is_replaced() {
        assert_eq!(TENANT.parse(), Ok(uuid::Uuid::nil()));
    }
}
