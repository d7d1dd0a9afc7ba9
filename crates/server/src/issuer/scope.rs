//! What a client asks for: the resource and the permissions, as both versions of the endpoints write them.
//!
//! Version 1 names a `resource` and means everything that the app may have; version 2 names scopes, each with its
//! resource in front.

use axum::http::StatusCode;
use domain::app::App;
use domain::permission::Permission;
use domain::session::Asked;

use super::refused::{Refused, shown};
use super::{Issuer, Version};

/// Scopes of `OpenID Connect`; some clients put them in front of the scope that they mean.
const OPENID_SCOPES: [&str; 4] = ["offline_access", "openid", "profile", "email"];
/// The most scopes of a request: more than there are.
const SCOPES_MAX: usize = 64;
/// Everything that the app may have.
const DEFAULT: &str = ".default";

/// What an app asks for itself: one resource.
pub(super) fn audience(
    version: Version,
    issuer: &Issuer,
    resource: Option<&str>,
    scope: Option<&str>,
) -> Result<String, Refused> {
    let audience = match version {
        Version::V1 => resource.ok_or_else(|| Refused::missing("resource"))?,
        Version::V2 => {
            let scope = scope.ok_or_else(|| Refused::missing("scope"))?;
            let mut meant = scope.split_ascii_whitespace().filter(|scope| !OPENID_SCOPES.contains(scope));
            match (meant.next().and_then(|scope| scope.strip_suffix("/.default")), meant.next()) {
                (Some(audience), None) => audience,
                _ => {
                    let text = format!(
                        "The provided value for scope '{}' is not valid. Client credential flows must have one \
                         scope, with /.default suffixed to the resource identifier.",
                        shown(scope)
                    );
                    return Err(Refused::new(StatusCode::BAD_REQUEST, "invalid_scope", 1_002_012, text));
                }
            }
        }
    };
    accepted(issuer, audience)
}

/// What an app asks for in the name of a person. None when it names neither a resource nor a permission.
pub(super) fn asked(
    issuer: &Issuer,
    app: &App,
    resource: Option<&str>,
    scope: Option<&str>,
) -> Result<Option<Asked>, Refused> {
    let scopes: Vec<&str> = scope.unwrap_or_default().split_ascii_whitespace().take(SCOPES_MAX + 1).collect();
    if scopes.len() > SCOPES_MAX {
        return Err(Refused::scope(format!("There are more than {SCOPES_MAX} scopes.")));
    }
    let mut audience = resource.map(|resource| accepted(issuer, resource)).transpose()?;
    let mut everything = audience.is_some();
    let mut permissions = Vec::new();
    for scope in scopes.iter().filter(|scope| !OPENID_SCOPES.contains(scope)) {
        let name = match scope.rsplit_once('/') {
            None => *scope,
            Some((resource, name)) => {
                let resource = accepted(issuer, resource)?;
                if audience.get_or_insert_with(|| resource.clone()).trim_end_matches('/')
                    != resource.trim_end_matches('/')
                {
                    return Err(Refused::scope("All scopes of a request must be of one resource."));
                }
                name
            }
        };
        if name == DEFAULT {
            everything = true;
        } else {
            permissions.push(permission(name)?);
        }
    }
    if !everything && permissions.is_empty() {
        return Ok(None);
    }
    if everything {
        permissions.clone_from(&app.permissions);
    }
    permissions.retain(|permission| app.permissions.contains(permission));
    permissions.sort_unstable();
    permissions.dedup();
    if permissions.is_empty() {
        return Err(Refused::scope(format!(
            "The application may have none of the scopes '{}'.",
            shown(scope.unwrap_or_default())
        )));
    }
    Ok(Some(Asked {
        audience: audience.unwrap_or_else(|| issuer.public_url.clone()),
        permissions,
        everything,
        openid: scopes.contains(&"openid"),
        offline: scopes.contains(&"offline_access"),
    }))
}

/// [`asked`], of a request that must ask for something.
pub(super) fn asked_something(
    issuer: &Issuer,
    app: &App,
    resource: Option<&str>,
    scope: Option<&str>,
) -> Result<Asked, Refused> {
    asked(issuer, app, resource, scope)?.ok_or_else(|| {
        let example = format!("{}/{DEFAULT}", issuer.public_url);
        Refused::scope(format!("The request names no scope of a resource here, such as '{example}'."))
    })
}

/// The `scope` of a reply: what was granted, each with its resource, as the vendor writes it.
pub(super) fn granted(asked: &Asked) -> String {
    let resource = asked.audience.trim_end_matches('/');
    let named = asked.permissions.iter().map(|permission| permission.scope());
    // Clients look up their cached tokens by the scopes that they asked for.
    let default = asked.everything.then_some(DEFAULT);
    let mut scopes: Vec<String> = named.chain(default).map(|name| format!("{resource}/{name}")).collect();
    if asked.openid {
        scopes.extend(["openid", "profile"].map(str::to_owned));
    }
    if asked.offline {
        scopes.push("offline_access".to_owned());
    }
    scopes.join(" ")
}

fn permission(name: &str) -> Result<Permission, Refused> {
    let found = Permission::ALL.into_iter().find(|known| known.scope().eq_ignore_ascii_case(name));
    found.ok_or_else(|| {
        let known: Vec<_> = Permission::ALL.into_iter().map(Permission::scope).collect();
        Refused::scope(format!("The scope '{}' is unknown; there are: {}.", shown(name), known.join(", ")))
    })
}

fn accepted(issuer: &Issuer, audience: &str) -> Result<String, Refused> {
    if issuer.accepts(audience) {
        return Ok(audience.to_owned());
    }
    let text = format!(
        "The resource '{}' was not found in this tenant, which has: {}.",
        shown(audience),
        issuer.audiences.join(", ")
    );
    Err(Refused::new(StatusCode::BAD_REQUEST, "invalid_resource", 500_011, text))
}
