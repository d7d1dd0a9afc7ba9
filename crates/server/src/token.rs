//! Bearer tokens, of whichever issuer: the one path by which every token is read, verified and understood.
//!
//! Owns what must hold for all tokens (the strict text, the signature by a key of the issuer's own, the times, who it
//! speaks for) and which issuer is asked: of those that are configured, the one that the token names. Deliberately
//! knows no keys, which are each issuer's, and not what a permission allows.

mod text;

use std::sync::Arc;
use std::time::Duration;

use domain::permission::Permission;
use domain::time::Timestamp;
use jsonwebtoken::{Algorithm, DecodingKey};
use serde_json::{Map, Value};

use crate::external_issuer::ExternalIssuer;
use crate::issuer::Issuer;

pub(crate) use text::{KEY_ID_BYTES_MAX, TokenText, read_object, read_token};

/// How far the clocks of issuer and server may differ when a token is new.
pub(crate) const CLOCK_SKEW: Duration = Duration::from_secs(60);
/// The longest name, id or group in a token, in bytes.
const NAME_BYTES_MAX: usize = 256;
/// The most groups in a token; the vendor writes at most 200.
const GROUPS_MAX: usize = 512;
/// The most audiences in a token.
const AUDIENCES_MAX: usize = 16;
/// The last second that is written with four digits of the year.
const SECONDS_MAX: i64 = 253_402_300_799;

/// What a valid token says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Token {
    /// The application that it was given to: an id of ours, or `<issuer>|<client id>` of another issuer.
    pub(crate) app: String,
    /// Whom the application acts for.
    pub(crate) subject: Subject,
}

/// Whom a token speaks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Subject {
    /// The application itself.
    App {
        /// What it may do. Names that are unknown grant nothing, and are left out.
        permissions: Vec<Permission>,
    },
    /// A person, through the application.
    User {
        /// For people: the UPN or the like. Not unique across issuers.
        name: String,
        /// The account: an id of ours, or `<issuer>|<subject>`.
        id: String,
        /// What the application may do for the person, who may be allowed less.
        scopes: Vec<Permission>,
        /// The groups that the issuer says the person is in, with the issuer's prefix.
        groups: Vec<String>,
        /// When the person signed in, in seconds since 1970; 0 if the token does not say.
        signed_in_at: i64,
        /// An account of the embedded issuer, which is to be looked up again with each request.
        local: bool,
    },
}

/// Why a token is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum TokenFault {
    /// Not a token of a known issuer, or not at this time; why, in words for the caller, without quotation marks.
    Invalid(String),
    /// A valid token for somebody else.
    WrongAudience {
        /// The audiences that are accepted from its issuer.
        accepted: Vec<String>,
    },
    /// The keys of its issuer cannot be had at the moment, so nobody can say. The log knows why.
    Unavailable {
        /// When to try again: above zero.
        retry_after: Duration,
    },
}

impl TokenFault {
    /// A token that is refused for this reason.
    pub(crate) fn invalid(why: impl Into<String>) -> Self {
        Self::Invalid(why.into())
    }
}

/// All issuers whose tokens count.
pub(crate) struct Tokens {
    embedded: Arc<Issuer>,
    external: Vec<Arc<ExternalIssuer>>,
}

impl Tokens {
    /// The embedded issuer and those that are configured.
    pub(crate) fn new(embedded: Arc<Issuer>, external: Vec<Arc<ExternalIssuer>>) -> Self {
        Self { embedded, external }
    }

    /// The issuers whose keys are fetched.
    pub(crate) fn external(&self) -> &[Arc<ExternalIssuer>] {
        &self.external
    }

    /// Checks a bearer token at the time `now`. Waits for the keys of an external issuer when they were not fetched yet,
    /// a bounded time.
    ///
    /// # Errors
    /// [`TokenFault`].
    pub(crate) async fn validate(&self, token: &str, now: Timestamp) -> Result<Token, TokenFault> {
        let token = read(token)?;
        // Not verified yet: this only chooses whose keys are to verify it, among those that are configured.
        let named = token.claims.get("iss").and_then(Value::as_str);
        match self.external.iter().find(|issuer| named == Some(issuer.url())) {
            Some(issuer) => issuer.validate(&token, now).await,
            None => self.embedded.validate(&token, now),
        }
    }
}

/// Takes a token apart, verifying nothing.
///
/// # Errors
/// [`TokenFault::Invalid`].
pub(crate) fn read(token: &str) -> Result<TokenText<'_>, TokenFault> {
    read_token(token).map_err(|unreadable| TokenFault::invalid(unreadable.0))
}

/// Checks the signature. The algorithm is one that the key is for, and never the token's own wish.
///
/// # Errors
/// [`TokenFault::Invalid`].
pub(crate) fn verify(
    token: &TokenText<'_>,
    key: &DecodingKey,
    algorithm: Algorithm,
) -> Result<(), TokenFault> {
    let verified = jsonwebtoken::crypto::verify(token.signature, token.signed.as_bytes(), key, algorithm);
    if matches!(verified, Ok(true)) {
        return Ok(());
    }
    Err(TokenFault::invalid("the token's signature is wrong"))
}

/// Checks when the token is valid: from `nbf`, if it says so, and until `exp`, which it must have.
///
/// # Errors
/// [`TokenFault::Invalid`].
pub(crate) fn check_times(claims: &Map<String, Value>, now: Timestamp) -> Result<(), TokenFault> {
    let time = |name: &str| match claims.get(name) {
        None => Ok(None),
        Some(value) => match value.as_i64() {
            Some(seconds @ 0..=SECONDS_MAX) => Ok(Some(seconds)),
            _ => Err(TokenFault::Invalid(format!("its claim {name} is no time in whole seconds"))),
        },
    };
    let expires = time("exp")?.ok_or_else(|| TokenFault::invalid("the token never expires"))?;
    if expires <= now.unix_seconds() {
        return Err(TokenFault::invalid("the token has expired"));
    }
    let latest = now.plus(CLOCK_SKEW).unix_seconds();
    if [time("nbf")?, time("iat")?].into_iter().flatten().any(|from| from > latest) {
        return Err(TokenFault::invalid("the token is not valid yet"));
    }
    Ok(())
}

/// Checks whom the token is for.
///
/// # Errors
/// [`TokenFault`].
pub(crate) fn check_audience(
    claims: &Map<String, Value>,
    accepted: &[String],
    accepts: impl Fn(&str) -> bool,
) -> Result<(), TokenFault> {
    let audiences = texts(claims.get("aud"), AUDIENCES_MAX).filter(|audiences| !audiences.is_empty());
    let audiences = audiences.ok_or_else(|| TokenFault::invalid("the token names no audience"))?;
    if audiences.into_iter().any(accepts) {
        return Ok(());
    }
    Err(TokenFault::WrongAudience { accepted: accepted.to_vec() })
}

/// Names of claims that issuers spell differently.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ClaimNames<'a> {
    /// Permissions of an application.
    pub(crate) roles: &'a str,
    /// Groups of a person.
    pub(crate) groups: &'a str,
    /// The name of a person; none for the usual ones.
    pub(crate) name: Option<&'a str>,
}

/// Claims that name a person, best first.
const NAME_CLAIMS: [&str; 2] = ["upn", "preferred_username"];
/// Claims that stand in tokens about people only.
const PERSON_CLAIMS: [&str; 10] = [
    "upn",
    "preferred_username",
    "unique_name",
    "email",
    "given_name",
    "family_name",
    "groups",
    "auth_time",
    "amr",
    "acr",
];
/// Claims that stand in tokens of applications too, whatever else they were configured as.
const COMMON_CLAIMS: [&str; 7] = ["iss", "sub", "oid", "appid", "azp", "client_id", "name"];

/// What the claims of a verified token say of the caller, in the issuer's own words.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Speaker<'a> {
    /// The application.
    pub(crate) client: &'a str,
    /// Whom it acts for.
    pub(crate) kind: SpeakerKind<'a>,
}

/// Whom an application acts for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum SpeakerKind<'a> {
    /// Itself.
    App {
        /// What it may do.
        permissions: Vec<Permission>,
    },
    /// A person.
    User {
        /// A name for people.
        name: &'a str,
        /// The issuer's id of the person, which never changes.
        id: &'a str,
        /// What the application may do for the person.
        scopes: Vec<Permission>,
        /// The person's groups.
        groups: Vec<&'a str>,
        /// When the person signed in; 0 if the token does not say.
        signed_in_at: i64,
    },
}

/// Understands the claims of a verified token.
///
/// A token speaks for the application itself if it says so (`idtyp`), or if its subject is the application, or, as the
/// vendor's tokens do, if it has no scope and its subject is its object. Everything else speaks for a person: a token
/// about a person must never pass for one of an application, which no machine group binds.
///
/// # Errors
/// [`TokenFault::Invalid`].
pub(crate) fn read_speaker<'a>(
    claims: &'a Map<String, Value>,
    names: ClaimNames<'_>,
) -> Result<Speaker<'a>, TokenFault> {
    if ["at_hash", "c_hash", "s_hash", "nonce"].into_iter().any(|name| claims.contains_key(name)) {
        return Err(TokenFault::invalid("it tells an application who signed in, and grants no access"));
    }
    if claims.contains_key("cnf") {
        return Err(TokenFault::invalid("it is bound to a key of its owner, which cannot be checked here"));
    }
    let kinds = ["appid", "azp", "client_id"];
    let client = first_text(claims, &kinds)?;
    let client = client.ok_or_else(|| TokenFault::invalid("the token names no application"))?;
    let (subject, object) = (text(claims, "sub")?, text(claims, "oid")?);
    let scopes = read_scopes(claims)?;
    let configured = names.name.into_iter().chain([names.groups]);
    let about_a_person = PERSON_CLAIMS.into_iter().any(|name| claims.contains_key(name))
        || configured
            .filter(|name| *name != names.roles && !COMMON_CLAIMS.contains(name))
            .any(|name| find(claims, name).is_some());
    let own_subject = subject == Some(client) || (scopes.is_empty() && object.is_some() && subject == object);
    let for_itself = match text(claims, "idtyp")? {
        Some("app") => true,
        Some("user") => false,
        Some(_) => return Err(TokenFault::invalid("its claim idtyp is neither app nor user")),
        None => own_subject && !about_a_person,
    };
    if for_itself {
        let roles = match find(claims, names.roles) {
            None => Vec::new(),
            Some(roles) => texts(Some(roles), GROUPS_MAX)
                .ok_or_else(|| TokenFault::invalid("its roles are no list of short texts"))?,
        };
        let permissions = roles.into_iter().filter_map(Permission::from_name).collect();
        return Ok(Speaker { client, kind: SpeakerKind::App { permissions } });
    }
    let id = object.or(subject).ok_or_else(|| TokenFault::invalid("the token has no subject"))?;
    let name = match names.name {
        Some(claim) => find(claims, claim).and_then(short_text),
        None => first_text(claims, &NAME_CLAIMS)?,
    };
    let scopes = scopes.into_iter().filter_map(Permission::from_scope).collect();
    let groups = read_groups(claims, names.groups)?;
    // A token that was renewed is newer than the sign-in.
    let signed_in_at = ["auth_time", "iat"].into_iter().find_map(|name| claims.get(name)?.as_i64());
    let signed_in_at = signed_in_at.unwrap_or_default();
    let name = name.unwrap_or(id);
    Ok(Speaker { client, kind: SpeakerKind::User { name, id, scopes, groups, signed_in_at } })
}

/// The scopes, as one text with spaces or as a list.
fn read_scopes(claims: &Map<String, Value>) -> Result<Vec<&str>, TokenFault> {
    match claims.get("scp").or_else(|| claims.get("scope")) {
        None => Ok(Vec::new()),
        Some(Value::String(scopes)) => Ok(scopes.split_ascii_whitespace().collect()),
        Some(list) => texts(Some(list), GROUPS_MAX)
            .ok_or_else(|| TokenFault::invalid("its scopes are no list of short texts")),
    }
}

/// The groups. An issuer that leaves them out, because they are too many, says so: what is left is not the truth then.
fn read_groups<'a>(claims: &'a Map<String, Value>, name: &str) -> Result<Vec<&'a str>, TokenFault> {
    let elsewhere = claims.get("_claim_names").is_some_and(|names| names.get(name).is_some());
    if elsewhere || claims.get("hasgroups").is_some_and(|has| *has != Value::Bool(false)) {
        let why = "it leaves the groups out, because they are too many: let the issuer write only the groups \
                   that are assigned to this application";
        return Err(TokenFault::invalid(why));
    }
    match find(claims, name) {
        None => Ok(Vec::new()),
        Some(groups) => texts(Some(groups), GROUPS_MAX)
            .ok_or_else(|| TokenFault::invalid("its groups are no list of short texts, or too many")),
    }
}

/// A claim by its name, or by a JSON pointer to it.
fn find<'a>(claims: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    let Some(pointer) = name.strip_prefix('/') else { return claims.get(name) };
    let (first, rest) = pointer.split_once('/').map_or((pointer, None), |(first, rest)| (first, Some(rest)));
    let value = claims.get(&first.replace("~1", "/").replace("~0", "~"))?;
    rest.map_or(Some(value), |rest| value.pointer(&format!("/{rest}")))
}

/// The first of the claims that is there.
fn first_text<'a>(claims: &'a Map<String, Value>, names: &[&str]) -> Result<Option<&'a str>, TokenFault> {
    names.iter().find(|name| claims.contains_key(**name)).map_or(Ok(None), |name| text(claims, name))
}

/// A claim that is a short text, if it is there.
fn text<'a>(claims: &'a Map<String, Value>, name: &str) -> Result<Option<&'a str>, TokenFault> {
    let Some(value) = claims.get(name) else { return Ok(None) };
    let text = short_text(value);
    text.map(Some).ok_or_else(|| TokenFault::Invalid(format!("its claim {name} is no short text")))
}

fn short_text(value: &Value) -> Option<&str> {
    let is_name =
        |text: &&str| (1..=NAME_BYTES_MAX).contains(&text.len()) && !text.chars().any(char::is_control);
    value.as_str().filter(is_name)
}

/// One text, or a list of at most so many.
fn texts(value: Option<&Value>, most: usize) -> Option<Vec<&str>> {
    match value?.as_array() {
        Some(values) if values.len() > most => None,
        Some(values) => values.iter().map(short_text).collect(),
        None => value.and_then(short_text).map(|text| vec![text]),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const NAMES: ClaimNames<'_> = ClaimNames { roles: "roles", groups: "groups", name: None };

    fn speaker(claims: &Value) -> Result<Token, String> {
        match read_speaker(claims.as_object().unwrap(), NAMES) {
            Ok(Speaker { client, kind: SpeakerKind::App { permissions } }) => {
                Ok(Token { app: client.to_owned(), subject: Subject::App { permissions } })
            }
            Ok(Speaker { client, kind: SpeakerKind::User { name, id, scopes, groups, signed_in_at } }) => {
                Ok(Token {
                    app: client.to_owned(),
                    subject: Subject::User {
                        name: name.to_owned(),
                        id: id.to_owned(),
                        scopes,
                        groups: groups.into_iter().map(str::to_owned).collect(),
                        signed_in_at,
                        local: false,
                    },
                })
            }
            Err(TokenFault::Invalid(why)) => Err(why),
            Err(other) => panic!("{other:?}"),
        }
    }

    fn is_app(claims: &Value) -> bool {
        matches!(speaker(claims).unwrap().subject, Subject::App { .. })
    }

    #[test]
    fn a_persons_token_never_passes_for_an_apps() {
        let app = json!({"azp": "c", "sub": "o", "oid": "o", "roles": ["Machine.Read.All"]});
        assert!(is_app(&app));
        assert!(is_app(&json!({"azp": "c", "sub": "c", "scope": "Machine.Read"})));
        assert!(is_app(&json!({"azp": "c", "sub": "x", "idtyp": "app"})));
        for claims in [
            json!({"azp": "c", "sub": "s", "oid": "o", "roles": ["Machine.Read.All"]}),
            json!({"azp": "c", "sub": "s", "roles": ["Machine.Read.All"]}),
            json!({"azp": "c", "sub": "o", "oid": "o", "scp": "Machine.Read"}),
            json!({"azp": "c", "sub": "c", "upn": "ann@example.com"}),
            json!({"azp": "c", "sub": "c", "idtyp": "user"}),
            json!({"azp": "c", "sub": "c", "groups": []}),
            json!({"azp": "c", "sub": "c", "auth_time": 5}),
            json!({"azp": "c", "sub": "c", "amr": ["pwd"]}),
            json!({"azp": "c", "sub": "o", "oid": "o", "acr": "1", "roles": ["Machine.Read.All"]}),
            json!({"azp": "c", "oid": "o"}),
        ] {
            assert!(!is_app(&claims), "{claims}");
        }
        assert!(speaker(&json!({"azp": "c", "sub": "c", "idtyp": "device"})).is_err());
        assert!(speaker(&json!({"azp": "c", "sub": "c", "nonce": "n"})).is_err());
        assert!(speaker(&json!({"azp": "c", "sub": "c", "cnf": {"jkt": "x"}})).is_err());
    }

    #[test]
    fn claims_that_were_configured_for_people_are_about_people() {
        let is_app = |name: &str, groups: &str, claims: &Value| {
            let names = ClaimNames { roles: "/access/roles", groups, name: Some(name) };
            let speaker = read_speaker(claims.as_object().unwrap(), names).unwrap();
            matches!(speaker.kind, SpeakerKind::App { .. })
        };
        let claims =
            json!({"azp": "c", "sub": "c", "nick": "ann", "access": {"roles": [], "teams": ["soc"]}});
        assert!(is_app("none", "none", &claims));
        assert!(!is_app("nick", "none", &claims));
        assert!(!is_app("none", "/access/teams", &claims));
        // What every token has tells nothing.
        assert!(is_app("sub", "/access/roles", &claims));
    }

    #[test]
    fn neither_scopes_nor_roles_grant_nothing() {
        let user = speaker(&json!({"azp": "c", "sub": "s"})).unwrap().subject;
        assert!(
            matches!(user, Subject::User { scopes, groups, .. } if scopes.is_empty() && groups.is_empty())
        );
        let app = speaker(&json!({"azp": "c", "sub": "c"})).unwrap().subject;
        assert_eq!(app, Subject::App { permissions: Vec::new() });
        // Names of the other kind, and unknown ones.
        let user = speaker(&json!({"azp": "c", "sub": "s", "scp": "Machine.Read.All machine.read openid"}));
        assert!(matches!(user.unwrap().subject, Subject::User { scopes, .. } if scopes.is_empty()));
        let app = speaker(&json!({"azp": "c", "sub": "c", "roles": ["Machine.Read", "All"]})).unwrap();
        assert_eq!(app.subject, Subject::App { permissions: Vec::new() });
    }

    #[test]
    fn people_are_named_by_what_their_issuer_vouches_for() {
        let name = |claims: Value| match speaker(&claims).unwrap().subject {
            Subject::User { name, id, .. } => (name, id),
            other @ Subject::App { .. } => panic!("{other:?}"),
        };
        let all =
            json!({"azp": "c", "sub": "s", "oid": "o", "upn": "u", "preferred_username": "p", "email": "e"});
        assert_eq!(name(all), ("u".to_owned(), "o".to_owned()));
        let some = json!({"azp": "c", "sub": "s", "preferred_username": "p", "email": "e"});
        assert_eq!(name(some), ("p".to_owned(), "s".to_owned()));
        assert_eq!(name(json!({"azp": "c", "sub": "s", "email": "e"})), ("s".to_owned(), "s".to_owned()));
    }

    #[test]
    fn a_renewed_token_is_as_old_as_its_sign_in() {
        let at = |claims: Value| match speaker(&claims).unwrap().subject {
            Subject::User { signed_in_at, .. } => signed_in_at,
            other @ Subject::App { .. } => panic!("{other:?}"),
        };
        assert_eq!(at(json!({"azp": "c", "sub": "s", "iat": 7, "auth_time": 5})), 5);
        assert_eq!(at(json!({"azp": "c", "sub": "s", "iat": 7})), 7);
        assert_eq!(at(json!({"azp": "c", "sub": "s"})), 0);
    }

    #[test]
    fn groups_are_whole_or_refused() {
        let user = |extra: Value| {
            let mut claims = json!({"azp": "c", "sub": "s", "scp": "Machine.Read"});
            claims.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
            speaker(&claims)
        };
        let many: Vec<_> = (0..=GROUPS_MAX).map(|number| number.to_string()).collect();
        let most = many.split_last().unwrap().1;
        let Subject::User { groups, .. } = user(json!({"groups": most})).unwrap().subject else { panic!() };
        assert_eq!(groups, most);
        for extra in [
            json!({"groups": many}),
            json!({"groups": [1]}),
            json!({"groups": {"a": "b"}}),
            json!({"groups": ["a".repeat(NAME_BYTES_MAX + 1)]}),
            json!({"groups": ["a\u{0}"]}),
            json!({"groups": [""]}),
            json!({"hasgroups": true}),
            json!({"_claim_names": {"groups": "src1"}, "_claim_sources": {"src1": {"endpoint": "https://x"}}}),
        ] {
            assert!(user(extra.clone()).unwrap_err().contains("groups"), "{extra}");
        }
    }

    #[test]
    fn claims_are_found_by_name_and_by_pointer() {
        let claims = json!({"https://x/roles": 1, "realm_access": {"roles": 2}, "a/b": {"c": 3}, "/d": 4});
        let claims = claims.as_object().unwrap();
        let table = [
            ("https://x/roles", Some(1)),
            ("/realm_access/roles", Some(2)),
            ("/a~1b/c", Some(3)),
            ("/~1d", Some(4)),
            ("realm_access.roles", None),
            ("/realm_access/none", None),
            ("/", None),
        ];
        for (name, expected) in table {
            assert_eq!(find(claims, name).and_then(Value::as_i64), expected, "{name}");
        }
    }
}
