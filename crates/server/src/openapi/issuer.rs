//! The token issuer in the API document: what clients need for a first token.

use serde_json::{Map, Value, json};

use super::TENANT;

/// What these operations are filed under.
pub(super) const TAG: &str = "token";

/// The operations by path.
pub(super) fn paths() -> Map<String, Value> {
    let mut paths = Map::new();
    for (version, path, form, reply) in [
        ("v1", "/{tenant}/oauth2/token", ("resource", "https://api.securitycenter.microsoft.com"), "TokenV1"),
        (
            "v2",
            "/{tenant}/oauth2/v2.0/token",
            ("scope", "https://api.securitycenter.microsoft.com/.default"),
            "TokenV2",
        ),
    ] {
        let operation = |verb: &str| token(&format!("token_{verb}_{version}"), form, reply);
        // The vendor's own clients send the form by GET, too.
        paths.insert(path.to_owned(), json!({"post": operation("create"), "get": operation("fetch")}));
    }
    for (operation, path, summary) in [
        (
            "discovery_fetch_v1",
            "/{tenant}/.well-known/openid-configuration",
            "Fetch the issuer's addresses, v1",
        ),
        (
            "discovery_fetch_v2",
            "/{tenant}/v2.0/.well-known/openid-configuration",
            "Fetch the issuer's addresses, v2",
        ),
        ("key_list_v1", "/{tenant}/discovery/keys", "Fetch the keys that tokens are signed with (JWKS)"),
        (
            "key_list_v2",
            "/{tenant}/discovery/v2.0/keys",
            "Fetch the keys that tokens are signed with (JWKS), v2",
        ),
    ] {
        paths.insert(path.to_owned(), json!({"get": document(operation, summary)}));
    }
    paths
}

fn tenant() -> Value {
    json!({
        "name": "tenant", "in": "path", "required": true, "description": "The deployment's tenant",
        "schema": {"type": "string", "format": "uuid"}, "example": TENANT,
    })
}

fn refused(description: &str) -> Value {
    json!({
        "description": description,
        "headers": {"x-request-id": super::header_reference("x-request-id")},
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/TokenError"}}},
    })
}

fn token(operation: &str, (target, example): (&str, &str), reply: &str) -> Value {
    let schema = json!({
        "type": "object",
        "required": ["grant_type", target],
        "properties": {
            "grant_type": {"type": "string", "enum": ["client_credentials"]},
            "client_id": {"type": "string", "format": "uuid", "description": "Here, or in HTTP Basic"},
            "client_secret": {"type": "string", "description": "Here, or in HTTP Basic"},
            target: {"type": "string", "description": "What the token is to be for", "examples": [example]},
        },
    });
    let form = json!({
        "grant_type": "client_credentials", "client_id": "0d0c7b1e-9f55-4c0b-8f0e-2f7a6a1b3c4d",
        "client_secret": "the secret", target: example,
    });
    json!({
        "operationId": operation,
        "tags": [TAG],
        "summary": "Make a token",
        "description": "Fields that are not listed are ignored. By GET it is the same, because some clients do so.",
        "security": [],
        "parameters": [tenant()],
        "requestBody": {
            "required": true,
            "content": {"application/x-www-form-urlencoded": {"schema": schema, "example": form}},
        },
        "responses": {
            "200": {
                "description": "Success",
                "headers": {"x-request-id": super::header_reference("x-request-id")},
                "content": {"application/json": {"schema": {"$ref": format!("#/components/schemas/{reply}")}}},
            },
            "400": refused("The request cannot be granted"),
            "401": refused("The client is unknown, or its secret is wrong"),
            "413": refused("The form is too long"),
            "429": refused("There were too many failed logins"),
            "503": refused("The server cannot answer at the moment"),
        },
    })
}

fn document(operation: &str, summary: &str) -> Value {
    json!({
        "operationId": operation,
        "tags": [TAG],
        "summary": summary,
        "security": [],
        "parameters": [tenant()],
        "responses": {
            "200": {
                "description": "Success",
                "headers": {"x-request-id": super::header_reference("x-request-id")},
                "content": {"application/json": {"schema": {"type": "object"}}},
            },
            "400": refused("There is no such tenant"),
        },
    })
}
