//! Who calls, and whether they may: the gate in front of every route of the API.
//!
//! Owns how a bearer token is taken from a request and what a caller without a good one is told. What a token says is
//! the issuer's to judge. A caller that lacks the route's permission is sent away before its body is read; the use case
//! checks again.

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use control_plane::{Bearer, Caller, Error, Groups};
use domain::permission::Requirement;
use uuid::Uuid;

use crate::error::ApiError;
use crate::state::{AppState, now};
use crate::token::{Subject, Token, TokenFault};

/// What a route demands of its callers.
#[derive(Clone)]
pub(crate) struct Gate {
    pub(crate) state: AppState,
    pub(crate) required: Requirement,
}

/// The app that a request came from, as an extension of the reply, for the log.
#[derive(Debug, Clone)]
pub(crate) struct CalledBy(pub(crate) String);

/// Lets callers through that hold what the route demands; their [`Caller`] is then an extension of the request.
pub(crate) async fn pass(State(gate): State<Gate>, mut request: Request, next: Next) -> Response {
    let caller = match authenticate(&gate.state, request.headers()).await {
        Ok(caller) => caller,
        Err(error) => return error.into_response(),
    };
    let called_by = CalledBy(caller.app().to_owned());
    let mut response = match caller.require(gate.required) {
        Ok(()) => {
            request.extensions_mut().insert(caller);
            next.run(request).await
        }
        Err(error) => ApiError::from(error).into_response(),
    };
    response.extensions_mut().insert(called_by);
    response
}

async fn authenticate(state: &AppState, headers: &HeaderMap) -> Result<Caller, ApiError> {
    let realm = Realm { url: &state.config.public_url, tenant: state.issuer.tenant() };
    let token = match bearer_token(headers) {
        Ok(Some(token)) => token,
        Ok(None) => {
            let message = "There is no bearer token in the request";
            return Err(ApiError::unauthorized(message, realm.challenge(None)));
        }
        Err(why) => return Err(realm.refuses(why)),
    };
    let Token { app, subject } = state.tokens.validate(token, now()).await.map_err(|fault| match fault {
        TokenFault::Invalid(why) => realm.refuses(&why),
        TokenFault::WrongAudience { accepted } => ApiError::wrong_audience(&accepted),
        TokenFault::Unavailable { retry_after } => {
            let message = "The keys of the token's issuer cannot be had at the moment";
            ApiError::unavailable_for(message, retry_after)
        }
    })?;
    let bearer = match subject {
        Subject::App { permissions } => Bearer::App { app, permissions },
        Subject::User { name, scopes, groups, signed_in_at, local, id: _ } => {
            let groups = if local { Groups::Account { signed_in_at } } else { Groups::Claimed(groups) };
            Bearer::User { app, name, scopes, groups }
        }
    };
    state.control.caller(bearer).map_err(|error| {
        if let Error::Unauthenticated(why) = &error {
            return realm.refuses(why);
        }
        error.into()
    })
}

/// The token of the one `Authorization` header; none when there is no header, or one of another scheme.
fn bearer_token(headers: &HeaderMap) -> Result<Option<&str>, &'static str> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err("there are several Authorization headers");
    }
    let value = value.to_str().map_err(|_not_text| "the Authorization header is not text")?;
    let (scheme, token) = value.split_once(' ').unwrap_or((value, ""));
    Ok(scheme.eq_ignore_ascii_case("bearer").then(|| token.trim()))
}

/// What a caller without a good token is to know.
struct Realm<'a> {
    url: &'a str,
    tenant: Uuid,
}

impl Realm<'_> {
    fn refuses(&self, why: &str) -> ApiError {
        ApiError::unauthorized(format!("The token is refused: {why}"), self.challenge(Some(why)))
    }

    /// RFC 6750, section 3: no error code when the request holds no token. The vendor's clients look for the URI.
    fn challenge(&self, why: Option<&str>) -> HeaderValue {
        let Self { url, tenant } = self;
        let mut value =
            format!("Bearer realm=\"{url}\", authorization_uri=\"{url}/{tenant}/oauth2/authorize\"");
        if let Some(why) = why {
            value += &format!(", error=\"invalid_token\", error_description=\"{why}\"");
        }
        HeaderValue::from_str(&value).unwrap_or(HeaderValue::from_static("Bearer"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_bearer_token_counts() {
        for (values, token) in [
            (&[][..], Ok(None)),
            (&["Bearer abc"], Ok(Some("abc"))),
            (&["bEARER  abc "], Ok(Some("abc"))),
            (&["Basic abc"], Ok(None)),
            (&["Bearer"], Ok(Some(""))),
            (&["Bearer a", "Bearer b"], Err(())),
            (&["Bearer \u{e9}"], Err(())),
        ] {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(header::AUTHORIZATION, HeaderValue::from_bytes(value.as_bytes()).unwrap());
            }
            assert_eq!(bearer_token(&headers).map_err(drop), token, "{values:?}");
        }
    }
}
