//! `cordon login`, `cordon logout` and `cordon whoami`: profiles, and who one is.

use std::path::PathBuf;
use std::rc::Rc;

use anyhow::{Context as _, Result};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use clap::Args;
use clap::builder::NonEmptyStringValueParser;
use domain::app::CLI_APP_ID;
use domain::time::Timestamp;
use reqwest::Url;
use serde::Serialize;
use serde_json::{Map, Value};

use crate::client::Client;
use crate::connection::{Connection, ConnectionArguments, Credentials, Trust};
use crate::error::UsageError;
use crate::http::Http;
use crate::oauth::{Endpoints, Grant, Issuer};
use crate::outcome::Outcome;
use crate::output::record;
use crate::profile::{Profile, ProfileFile, SignIn};
use crate::progress::Progress;
use crate::session::Session;

/// What `cordon login --help` says besides the options.
pub(crate) const HELP: &str = "\
Examples:
  cordon login --server https://cordon.example --ca-pin SHA256
      as a person, by the server's own issuer: shows a URL and a code, and waits
  cordon login --server https://cordon.example --issuer https://login.example/tenant --client-id ID
      as a person, by another OpenID Connect issuer that the server accepts
  cordon login --server https://cordon.example --client-id ID --client-secret-file FILE
      as an app

A person's tokens are kept in the profile, which only its owner can read, and renewed by themselves.";

/// Options of `cordon login` only.
#[derive(Debug, Args)]
pub(crate) struct LoginArguments {
    /// Sign in as a person by another issuer (OIDC), which knows --client-id
    #[arg(long, value_name = "URL", requires = "client_id")]
    issuer: Option<Url>,
    /// Trust the certificate authorities in this PEM file for the issuer, and no others
    #[arg(long, value_name = "FILE", requires = "issuer")]
    issuer_ca_file: Option<PathBuf>,
    /// The scope to ask the issuer for [default: the server's audience with /.default, and `offline_access`]
    #[arg(long, value_name = "SCOPE", requires = "issuer", value_parser = NonEmptyStringValueParser::new())]
    scope: Option<String>,
    /// Name the audience of the token by this resource too (RFC 8707), for issuers that ask for it
    #[arg(long, value_name = "URI", requires = "issuer", value_parser = NonEmptyStringValueParser::new())]
    resource: Option<String>,
}

/// Verifies the server and the app or person by getting a token, and keeps them as a profile.
pub(crate) async fn login(
    connection: &ConnectionArguments,
    arguments: &LoginArguments,
    progress: Rc<Progress>,
) -> Result<Outcome> {
    match (&arguments.issuer, connection.client_id()) {
        (Some(issuer), Some(client_id)) => {
            if connection.has_secret() {
                let message = "--issuer signs in a person, who needs no client secret: drop one of them";
                return Err(UsageError(message.to_owned()).into());
            }
            by_other_issuer(connection, arguments, issuer, client_id, progress).await
        }
        (None, None) if !connection.has_secret() => by_own_issuer(connection, progress).await,
        _ => as_app(connection, progress).await,
    }
}

async fn as_app(connection: &ConnectionArguments, progress: Rc<Progress>) -> Result<Outcome> {
    let given = connection.given()?;
    let client = Client::new(given.clone(), Rc::clone(&progress))?;
    client.token().await?;
    let app = match &given.credentials {
        Credentials::App { id, .. } => id.clone(),
        Credentials::Person(person) => person.client_id.clone(),
    };
    keep(connection, given, None, &client, &format!("as app {app}"), &progress)
}

async fn by_own_issuer(connection: &ConnectionArguments, progress: Rc<Progress>) -> Result<Outcome> {
    let client_id = CLI_APP_ID.to_string();
    let signing_in = connection.signing_in(&client_id)?;
    let client = Client::new(signing_in.clone(), Rc::clone(&progress))?;
    let own = client.discover().await?;
    let scope = format!("{}/.default offline_access", own.audience);
    let token_endpoint = own.endpoint("token");
    let issuer = client.issuer(&client_id, &scope);
    let grant = issuer.sign_in(&own.endpoint("devicecode"), &token_endpoint, &progress).await?;
    let sign_in = kept(&grant, &token_endpoint, scope.clone());
    signed_in(connection, signing_in, sign_in, grant, &client, &progress).await
}

async fn by_other_issuer(
    connection: &ConnectionArguments,
    arguments: &LoginArguments,
    issuer: &Url,
    client_id: &str,
    progress: Rc<Progress>,
) -> Result<Outcome> {
    if issuer.scheme() != "https" || issuer.query().is_some() || issuer.fragment().is_some() {
        return Err(UsageError(format!("the issuer {issuer} must be an https URL without ? and #")).into());
    }
    let signing_in = connection.signing_in(client_id)?;
    let client = Client::new(signing_in.clone(), Rc::clone(&progress))?;
    let trust = arguments.issuer_ca_file.as_deref().map_or(Ok(Trust::System), Trust::in_file)?;
    let http = Http::new(&trust, Rc::clone(&progress))?;
    let endpoints = Endpoints::discover(&http, issuer).await?;
    let device_endpoint = endpoints.device.with_context(|| {
        format!("the issuer {issuer} lets nobody sign in by device code: it names no device_authorization_endpoint")
    })?;
    let scope = match &arguments.scope {
        Some(scope) => scope.clone(),
        None => format!("{}/.default offline_access", client.discover().await?.audience),
    };
    let resource = arguments.resource.as_deref();
    let token_endpoint = endpoints.token;
    let grant = Issuer { http: &http, client_id, scope: &scope, resource }
        .sign_in(&device_endpoint, &token_endpoint, &progress)
        .await?;
    let issuer_ca_certificates = match trust {
        Trust::Certificates(pem) => Some(pem),
        Trust::System | Trust::Pin(_) => None,
    };
    let sign_in = SignIn {
        issuer_ca_certificates,
        resource: arguments.resource.clone(),
        ..kept(&grant, &token_endpoint, scope.clone())
    };
    signed_in(connection, signing_in, sign_in, grant, &client, &progress).await
}

fn kept(grant: &Grant, token_endpoint: &Url, scope: String) -> SignIn {
    SignIn {
        token_endpoint: token_endpoint.to_string(),
        issuer_ca_certificates: None,
        scope,
        resource: None,
        access_token: grant.access_token.clone(),
        access_token_ends: 0,
        refresh_token: None,
    }
}

/// Keeps a sign-in once the server takes its token.
async fn signed_in(
    arguments: &ConnectionArguments,
    connection: Connection,
    sign_in: SignIn,
    grant: Grant,
    client: &Client,
    progress: &Progress,
) -> Result<Outcome> {
    client.hold(&grant);
    let forbidden = client.probe().await?;
    let claims = claims(grant.access_token.reveal());
    let who = claims.as_ref().and_then(name).unwrap_or_else(|| "a person".to_owned());
    let outcome =
        keep(arguments, connection, Some(sign_in.renewed(grant)), client, &format!("as {who}"), progress)?;
    if let Some(forbidden) = forbidden {
        progress.note(&format!("the server does not let you see machines: {forbidden}"));
    }
    Ok(outcome)
}

fn keep(
    arguments: &ConnectionArguments,
    connection: Connection,
    sign_in: Option<SignIn>,
    client: &Client,
    whom: &str,
    progress: &Progress,
) -> Result<Outcome> {
    let (file, name) = (ProfileFile::of_user()?, arguments.profile());
    file.store(name, Profile::of(connection, sign_in))?;
    progress.note(&format!(
        "signed in to {} {whom}; profile {name:?} is in {}",
        client.server(),
        file.path().display()
    ));
    Ok(Outcome::Done)
}

/// Forgets a profile.
pub(crate) fn logout(arguments: &ConnectionArguments, progress: &Progress) -> Result<Outcome> {
    let (file, name) = (ProfileFile::of_user()?, arguments.profile());
    let profile = file.find(name)?;
    if !file.remove(name)? {
        return Err(UsageError(format!("there is no profile {name:?} in {}", file.path().display())).into());
    }
    let rest = if profile.is_some_and(|profile| profile.sign_in.is_some()) {
        "the tokens in it are forgotten"
    } else {
        "the app keeps its secret until: cordon app revoke"
    };
    progress.note(&format!("profile {name:?} is gone; {rest}"));
    Ok(Outcome::Done)
}

/// Who the server takes the caller for.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct WhoAmI {
    server: String,
    /// `user` or `app`.
    kind: &'static str,
    name: Option<String>,
    app: Option<String>,
    /// Of a person's token: `scp`; of an app's: `roles`.
    permissions: Vec<String>,
    groups: Vec<String>,
    issuer: Option<String>,
    audience: Option<String>,
    token_ends: Option<String>,
}

/// Prints what the token says of its bearer.
pub(crate) async fn whoami(session: &Session) -> Result<Outcome> {
    let client = &session.client;
    let token = client.token().await?;
    let claims = claims(token.reveal()).unwrap_or_default();
    let text = |claim: &str| claims.get(claim).and_then(Value::as_str).map(str::to_owned);
    let is_person = matches!(client.credentials(), Credentials::Person(_));
    let who = WhoAmI {
        server: client.server(),
        kind: if is_person { "user" } else { "app" },
        name: if is_person { name(&claims) } else { None },
        app: text("appid").or_else(|| text("azp")).or_else(|| text("client_id")),
        permissions: if is_person {
            let scopes = text("scp").or_else(|| text("scope")).unwrap_or_default();
            scopes.split_whitespace().map(str::to_owned).collect()
        } else {
            texts(&claims, "roles")
        },
        groups: texts(&claims, "groups"),
        issuer: text("iss"),
        audience: match claims.get("aud") {
            Some(Value::Array(_)) => Some(texts(&claims, "aud").join(", ")),
            Some(_) | None => text("aud"),
        },
        token_ends: claims
            .get("exp")
            .and_then(Value::as_i64)
            .map(|seconds| Timestamp::from_unix_seconds(seconds).to_string()),
    };
    session.output.made(&who, || {
        let permissions = who.permissions.join(", ");
        record([
            ("server", Some(who.server.clone())),
            (who.kind, who.name.clone().or_else(|| who.app.clone())),
            ("app", who.name.as_ref().and(who.app.clone())),
            (if is_person { "scopes" } else { "permissions" }, Some(permissions)),
            ("groups", (!who.groups.is_empty()).then(|| who.groups.join(", "))),
            ("issuer", who.issuer.clone()),
            ("audience", who.audience.clone()),
            ("token ends", who.token_ends.clone()),
        ])
    })?;
    if claims.is_empty() {
        session.output.hint("the token is not one that can be read here; only the server knows what it says");
    }
    Ok(Outcome::Done)
}

/// What a token says. It is not verified: the server does that, and decides by it; here it is only shown.
fn claims(token: &str) -> Option<Map<String, Value>> {
    let mut parts = token.split('.');
    let (_, payload, _) = (parts.next()?, parts.next()?, parts.next()?);
    let payload = URL_SAFE_NO_PAD.decode(payload).ok()?;
    serde_json::from_slice(&payload).ok()
}

fn name(claims: &Map<String, Value>) -> Option<String> {
    let names = ["upn", "preferred_username", "unique_name", "email", "sub"];
    names.iter().find_map(|claim| Some(claims.get(*claim)?.as_str()?.to_owned()))
}

fn texts(claims: &Map<String, Value>, claim: &str) -> Vec<String> {
    let values = claims.get(claim).and_then(Value::as_array).into_iter().flatten();
    values.filter_map(|value| Some(value.as_str()?.to_owned())).collect()
}
