//! The token issuer in the API document: how applications and people come to their tokens.
//!
//! By hand, because these endpoints are no routes of the API: forms go in, and pages, redirects and OAuth's own errors
//! come out.

use serde_json::{Map, Value, json};

use super::TENANT;

/// What these operations are filed under.
pub(super) const TAG: &str = "token";

const CLIENT: &str = "0d0c7b1e-9f55-4c0b-8f0e-2f7a6a1b3c4d";
const RESOURCE: &str = "https://api.securitycenter.microsoft.com";
const SCOPE: &str = "https://api.securitycenter.microsoft.com/.default";
const PERSONAL_SCOPE: &str = "https://api.securitycenter.microsoft.com/Machine.Read offline_access";
const REDIRECT_URI: &str = "https://soar.example/callback";

/// The two forms of an endpoint: the suffix of its operations, the part of its path, and the names of what differs.
struct Version {
    suffix: &'static str,
    part: &'static str,
    /// What an application names the API by, and an example.
    target: (&'static str, &'static str),
    reply: &'static str,
}

const VERSIONS: [Version; 2] = [
    Version { suffix: "v1", part: "", target: ("resource", RESOURCE), reply: "TokenV1" },
    Version { suffix: "v2", part: "/v2.0", target: ("scope", SCOPE), reply: "TokenV2" },
];

/// The operations by path.
pub(super) fn paths() -> Map<String, Value> {
    let mut paths = Map::new();
    for version in &VERSIONS {
        let Version { suffix, part, .. } = version;
        // The vendor's own clients send the form by GET, too.
        let token = |verb: &str| token(&format!("token_{verb}_{suffix}"), version);
        paths.insert(
            format!("/{{tenant}}/oauth2{part}/token"),
            json!({"post": token("create"), "get": token("fetch")}),
        );
        paths.insert(
            format!("/{{tenant}}/oauth2{part}/authorize"),
            json!({
                "get": authorize_show(&format!("authorize_show_{suffix}")),
                "post": authorize_submit(&format!("authorize_submit_{suffix}")),
            }),
        );
        paths.insert(
            format!("/{{tenant}}/oauth2{part}/devicecode"),
            json!({"post": device_code(&format!("device_code_create_{suffix}"))}),
        );
        for (operation, path, summary) in [
            (
                "discovery_fetch",
                format!("{part}/.well-known/openid-configuration"),
                "Fetch the issuer's addresses",
            ),
            (
                "key_list",
                format!("/discovery{part}/keys"),
                "Fetch the keys that tokens are signed with (JWKS)",
            ),
        ] {
            let described = document(&format!("{operation}_{suffix}"), &format!("{summary}, {suffix}"));
            paths.insert(format!("/{{tenant}}{path}"), json!({"get": described}));
        }
    }
    paths.insert(
        "/{tenant}/oauth2/deviceauth".to_owned(),
        json!({"get": device_show(), "post": device_submit()}),
    );
    paths
}

fn tenant() -> Value {
    json!({
        "name": "tenant", "in": "path", "required": true, "description": "The deployment's tenant",
        "schema": {"type": "string", "format": "uuid"}, "example": TENANT,
    })
}

/// An operation that needs no token.
fn operation(
    id: &str,
    summary: &str,
    description: &str,
    parameters: &[Value],
    responses: impl Into<Value>,
) -> Value {
    let parameters: Vec<Value> = [tenant()].into_iter().chain(parameters.iter().cloned()).collect();
    json!({
        "operationId": id,
        "tags": [TAG],
        "summary": summary,
        "description": description,
        "security": [],
        "parameters": parameters,
        "responses": responses.into(),
    })
}

fn with_form(mut operation: Value, schema: &Value, example: &Value) -> Value {
    let body = json!({
        "required": true,
        "content": {"application/x-www-form-urlencoded": {"schema": schema, "example": example}},
    });
    if let Some(operation) = operation.as_object_mut() {
        operation.insert("requestBody".to_owned(), body);
    }
    operation
}

fn answer(description: &str, headers: &[&str], content: Value) -> Value {
    let mut names = Map::new();
    for name in [&["x-request-id"], headers].concat() {
        names.insert(name.to_owned(), super::header_reference(name));
    }
    let mut answer = Map::new();
    answer.insert("description".to_owned(), description.into());
    answer.insert("headers".to_owned(), names.into());
    if !content.is_null() {
        answer.insert("content".to_owned(), content);
    }
    answer.into()
}

fn json_content(schema: impl Into<Value>) -> Value {
    json!({"application/json": {"schema": schema.into()}})
}

fn refused(description: &str, headers: &[&str]) -> Value {
    answer(description, headers, json_content(json!({"$ref": "#/components/schemas/TokenError"})))
}

fn page(description: &str, headers: &[&str]) -> Value {
    answer(description, headers, json!({"text/html": {"schema": {"type": "string"}}}))
}

fn text(description: &str) -> Value {
    json!({"type": "string", "description": description})
}

/// The fields by which an application shows who it is.
fn client_fields() -> Map<String, Value> {
    let fields = [
        ("client_id", json!({"type": "string", "format": "uuid", "description": "Here, or in HTTP Basic"})),
        ("client_secret", text("Here, or in HTTP Basic. A public application has none")),
        (
            "client_assertion_type",
            json!({
                "type": "string", "enum": ["urn:ietf:params:oauth:client-assertion-type:jwt-bearer"],
                "description": "With `client_assertion`",
            }),
        ),
        ("client_assertion", text("A JWT that the application signed, instead of a secret")),
    ];
    fields.into_iter().map(|(name, schema)| (name.to_owned(), schema)).collect()
}

fn token(id: &str, version: &Version) -> Value {
    let (target, example) = version.target;
    let mut fields = Map::new();
    let device_code = "urn:ietf:params:oauth:grant-type:device_code";
    let grant_types = ["client_credentials", "authorization_code", "refresh_token", device_code, "password"];
    fields.insert("grant_type".to_owned(), json!({"type": "string", "enum": grant_types}));
    fields.extend(client_fields());
    let more = [
        ("resource", "What the token is to be for; required of version 1 with `client_credentials`"),
        ("scope", "What the token is to be for; required of version 2 with `client_credentials`"),
        ("code", "With `authorization_code`: what the application was sent"),
        ("code_verifier", "With `authorization_code`: what the code challenge was made of (PKCE)"),
        ("redirect_uri", "With `authorization_code`: where the code was sent"),
        ("refresh_token", "With `refresh_token`: the newest of its session; each counts once"),
        ("device_code", "With the grant type of that name"),
        ("username", "With `password`, which is refused unless the server's settings switch it on"),
        ("password", "With `password`"),
        ("client_info", "`1` adds `client_info` to the reply"),
    ];
    fields.extend(more.map(|(name, description)| (name.to_owned(), text(description))));
    let schema = json!({"type": "object", "required": ["grant_type"], "properties": fields});
    let form = json!({
        "grant_type": "client_credentials", "client_id": CLIENT, "client_secret": "the secret", target: example,
    });
    let description = "An application gets a token of its own by its secret or assertion, and one for a person by what \
                       the person granted. Fields that are not listed are ignored. By GET it is the same, because some \
                       clients do so.";
    let reply = json!({"$ref": format!("#/components/schemas/{}", version.reply)});
    let responses = json!({
        "200": answer("Success", &[], json_content(reply)),
        "400": refused("The request cannot be granted, or a person has not approved a device yet", &[]),
        "401": refused("The client is not who it says", &[]),
        "413": refused("The form is too long", &[]),
        "429": refused("There were too many failed logins", &["Retry-After"]),
        "503": refused("The server cannot answer at the moment", &["Retry-After"]),
    });
    with_form(operation(id, "Make a token", description, &[], responses), &schema, &form)
}

/// What an application asks for when it sends a person here.
fn authorize_query() -> Vec<Value> {
    let parameter = |name: &str, required: bool, description: &str, schema: Value, example: &str| {
        json!({
            "name": name, "in": "query", "required": required, "description": description, "schema": schema,
            "example": example,
        })
    };
    let string = || json!({"type": "string"});
    vec![
        parameter("client_id", true, "The application", json!({"type": "string", "format": "uuid"}), CLIENT),
        parameter(
            "redirect_uri",
            true,
            "Where the answer goes: one of the application's",
            string(),
            REDIRECT_URI,
        ),
        parameter(
            "response_type",
            true,
            "What is wanted",
            json!({"type": "string", "enum": ["code"]}),
            "code",
        ),
        parameter(
            "response_mode",
            false,
            "How the answer goes: as a part of the address, or as a form",
            json!({"type": "string", "enum": ["query", "form_post"]}),
            "query",
        ),
        parameter("scope", false, "What the token is to be for", string(), PERSONAL_SCOPE),
        parameter(
            "resource",
            false,
            "What the token is to be for, as version 1 names it",
            string(),
            RESOURCE,
        ),
        parameter(
            "code_challenge",
            true,
            "SHA-256 of the code verifier, in base64url (PKCE)",
            json!({"type": "string", "pattern": "^[A-Za-z0-9_-]{43}$"}),
            "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM",
        ),
        parameter(
            "code_challenge_method",
            true,
            "How the challenge was made",
            json!({"type": "string", "enum": ["S256"]}),
            "S256",
        ),
        parameter("state", false, "Comes back with the answer", string(), "af0ifjsldkj"),
        parameter(
            "nonce",
            false,
            "Stands in the id token",
            json!({"type": "string", "maxLength": 512}),
            "n-0S6",
        ),
        parameter("prompt", false, "Anything but `none`: the person is always asked", string(), "login"),
        parameter("login_hint", false, "The name to begin with", string(), "ann@example.org"),
    ]
}

fn authorize_answers() -> Map<String, Value> {
    let sent = "The person is sent back to the application, with `code` or `error`, `state` and `iss` in the address";
    let answers = [
        ("200", page("The page; or, with `form_post`, the answer as a form to send on", &[])),
        ("303", answer(sent, &["Location"], Value::Null)),
        (
            "400",
            page(
                "The application, its address or the form is not right; the person is not sent anywhere",
                &[],
            ),
        ),
        ("429", page("There were too many failed logins", &["Retry-After"])),
        ("503", page("The server cannot answer at the moment", &[])),
    ];
    answers.into_iter().map(|(status, answer)| (status.to_owned(), answer)).collect()
}

fn authorize_show(id: &str) -> Value {
    let description = "For browsers: an application sends a person here, and is sent a code in the end.";
    let query = authorize_query();
    operation(id, "Show the page on which a person signs in", description, &query, authorize_answers())
}

fn authorize_submit(id: &str) -> Value {
    let schema = json!({
        "type": "object",
        "properties": {
            "username": text("Who signs in"),
            "password": text("The password"),
            "decision": {"type": "string", "description": "`cancel` sends the person back without a code"},
        },
    });
    let form = json!({"username": "ann@example.org", "password": "correct horse battery staple", "decision": "sign_in"});
    let mut answers = authorize_answers();
    answers.insert("403".to_owned(), page("The name or password is wrong, or the account is locked", &[]));
    let description = "What the form of the page sends. The query is that of the page.";
    let described = operation(id, "Sign in, or decline", description, &authorize_query(), answers);
    with_form(described, &schema, &form)
}

fn device_code(id: &str) -> Value {
    let mut fields = client_fields();
    fields.insert("scope".to_owned(), text("What the token is to be for"));
    fields.insert("resource".to_owned(), text("What the token is to be for, as version 1 names it"));
    let schema = json!({"type": "object", "properties": fields});
    let whole = |minimum: u32| json!({"type": "integer", "minimum": minimum});
    let reply = json!({
        "type": "object",
        "required": [
            "device_code", "user_code", "verification_uri", "verification_uri_complete", "expires_in", "interval",
            "message",
        ],
        "properties": {
            "device_code": text("What the device asks for a token with"),
            "user_code": text("What the person types"),
            "verification_uri": text("Where the person types it"),
            "verification_url": text("The same, by the vendor's older name"),
            "verification_uri_complete": text("The same, with the code in it"),
            "expires_in": whole(1),
            "interval": whole(1),
            "message": text("What to show to the person"),
        },
    });
    let responses = json!({
        "200": answer("Success", &[], json_content(reply)),
        "400": refused("The request cannot be granted", &[]),
        "401": refused("The client is not who it says", &[]),
        "413": refused("The form is too long", &[]),
        "429": refused("There were too many failed logins, or too many devices that wait", &["Retry-After"]),
        "503": refused("The server cannot answer at the moment", &["Retry-After"]),
    });
    let description = "For devices without a browser: the person types the code elsewhere, and the device asks for its \
                       token meanwhile, at the interval.";
    let described = operation(id, "Begin to sign in on a device", description, &[], responses);
    with_form(described, &schema, &json!({"client_id": CLIENT, "scope": PERSONAL_SCOPE}))
}

fn device_answers() -> Map<String, Value> {
    let answers = [
        ("200", page("The page", &[])),
        ("400", page("The request cannot be read, or there is no such tenant", &[])),
        ("404", page("No device waits with this code", &[])),
        ("429", page("There were too many wrong codes or failed logins", &["Retry-After"])),
        ("503", page("The server cannot answer at the moment", &[])),
    ];
    answers.into_iter().map(|(status, answer)| (status.to_owned(), answer)).collect()
}

fn device_show() -> Value {
    let code = json!({
        "name": "user_code", "in": "query", "description": "What the device shows; asked for when it is missing",
        "schema": {"type": "string"}, "example": "BCDF-GHJK",
    });
    let summary = "Show the page on which a person approves a device";
    operation("device_show", summary, "For browsers.", &[code], device_answers())
}

fn device_submit() -> Value {
    let schema = json!({
        "type": "object",
        "required": ["user_code"],
        "properties": {
            "user_code": text("What the device shows"),
            "username": text("Who signs in"),
            "password": text("The password"),
            "decision": {"type": "string", "description": "`approve` or `decline`; else the page is shown again"},
        },
    });
    let form = json!({
        "user_code": "BCDF-GHJK", "username": "ann@example.org", "password": "correct horse battery staple",
        "decision": "approve",
    });
    let mut answers = device_answers();
    answers.insert("403".to_owned(), page("The name or password is wrong, or the account is locked", &[]));
    let description = "What the form of the page sends.";
    let described = operation("device_submit", "Approve a device, or decline", description, &[], answers);
    with_form(described, &schema, &form)
}

fn document(id: &str, summary: &str) -> Value {
    let responses = json!({
        "200": answer("Success", &[], json_content(json!({"type": "object"}))),
        "400": refused("There is no such tenant", &[]),
    });
    operation(id, summary, "What OpenID Connect says.", &[], responses)
}
