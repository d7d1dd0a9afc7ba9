//! The errors in the API document: each code of the contract with its status and a message as the server writes it.

use serde_json::{Map, Value, json};

/// Code, status, message. `BodyTooLarge` is told apart here only: its code on the wire is `InvalidRequestBody`.
const CODES: &[(&str, u16, &str)] = &[
    ("BadRequest", 400, "The action is Succeeded already and cannot be cancelled"),
    (
        "ODataError",
        400,
        "$filter, position 1: found 'colour', expected a property: id, status, machineId, type, requestor",
    ),
    ("InvalidInput", 400, "Comment has more than 4000 characters"),
    ("InvalidRequestBody", 400, "The body cannot be used: expected value at line 1 column 13"),
    ("MissingRequiredParameter", 400, "Parameter Comment is missing"),
    ("OsPlatformNotSupported", 400, "The machine runs Windows: only Linux can be restricted"),
    (
        "ClientVersionNotSupported",
        400,
        "The machine has no usable enforcement backend: fanotify permission events are missing",
    ),
    (
        "ActiveRequestAlreadyExists",
        400,
        "Action is already in progress: b7a2f0de-31c4-4a77-9a0e-5d2f6c1e8843",
    ),
    ("Unauthorized", 401, "The token is refused: the token has expired"),
    (
        "Forbidden",
        403,
        "Missing application roles. API required roles: Machine.RestrictExecution, application roles: Machine.Read.All.",
    ),
    ("DisabledFeature", 403, "This is switched off in this deployment"),
    ("DisallowedOperation", 403, "This would change more machines than the blast-radius limit admits"),
    ("ResourceNotFound", 404, "Machine 0f3c9a7be1d2445566778899aabbccddeeff0011 was not found"),
    ("BodyTooLarge", 413, "The body is longer than 131072 bytes"),
    ("TooManyRequests", 429, "At most 100 calls in 60 seconds are possible; try again in 12 seconds"),
    (
        "InternalServerError",
        500,
        "An internal error has occurred; the server's log has it under the id in target",
    ),
    ("ServiceUnavailable", 503, "The server's database cannot be used at the moment"),
];

/// A correlation id for examples.
const TARGET: &str = "8a1f6c0e-2d5b-4f7e-9c3a-1b0d2e4f6a8c";

/// Whether a code is listed.
#[cfg(test)]
pub(super) fn is_known(code: &str) -> bool {
    CODES.iter().any(|known| known.0 == code)
}

/// The replies of an operation that can answer these codes, by status.
pub(super) fn responses(codes: &[&str]) -> Map<String, Value> {
    let mut statuses: Vec<u16> =
        CODES.iter().filter(|known| codes.contains(&known.0)).map(|known| known.1).collect();
    statuses.dedup();
    statuses.into_iter().map(|status| (status.to_string(), response(status, codes))).collect()
}

/// The reply with a status, with an example for each of the codes that has it.
pub(super) fn response(status: u16, codes: &[&str]) -> Value {
    let found: Vec<_> = CODES.iter().filter(|known| known.1 == status && codes.contains(&known.0)).collect();
    let examples: Map<String, Value> = found
        .iter()
        .map(|(code, _, message)| {
            let code = wire(code);
            let value = json!({"error": {"code": code, "message": message, "target": TARGET}});
            (code.to_owned(), json!({"value": value}))
        })
        .collect();
    let names: Vec<String> = found.iter().map(|known| format!("`{}`", wire(known.0))).collect();
    let mut headers = json!({"x-request-id": super::header_reference("x-request-id")});
    let more: &[&str] = match status {
        401 => &["WWW-Authenticate"],
        429 | 503 => &["Retry-After"],
        _ => &[],
    };
    if let Some(headers) = headers.as_object_mut() {
        headers.extend(more.iter().map(|name| ((*name).to_owned(), super::header_reference(name))));
    }
    json!({
        "description": names.join(", "),
        "headers": headers,
        "content": {"application/json": {
            "schema": {"$ref": "#/components/schemas/ErrorEnvelope"},
            "examples": examples,
        }},
    })
}

fn wire(code: &str) -> &str {
    if code == "BodyTooLarge" { "InvalidRequestBody" } else { code }
}
