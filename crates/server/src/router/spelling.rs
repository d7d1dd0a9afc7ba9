//! Paths as clients spell them: `/api/v1.0/...` is `/api/...`, fixed segments match without regard to case, and a slash
//! at the end does not count. Ids, names and the query stay as they are.

use std::borrow::Cow;

use axum::http::Uri;
use axum::http::uri::PathAndQuery;

use super::ROUTES;

/// The request with its path as [`ROUTES`] spells it, when a route matches.
pub(super) fn canonical<B>(mut request: axum::http::Request<B>) -> axum::http::Request<B> {
    if let Some(uri) = canonical_uri(request.uri()) {
        *request.uri_mut() = uri;
    }
    request
}

fn canonical_uri(uri: &Uri) -> Option<Uri> {
    let path = canonical_path(uri.path())?;
    let path_and_query = match uri.query() {
        None => path,
        Some(query) => format!("{path}?{query}"),
    };
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(PathAndQuery::try_from(path_and_query).ok()?);
    Uri::from_parts(parts).ok()
}

fn canonical_path(path: &str) -> Option<String> {
    let path = path.strip_prefix('/')?;
    let path = path.strip_suffix('/').unwrap_or(path);
    let (given, called) = (segments(path), without_call(path));
    let called = segments(&called);
    ROUTES.iter().find_map(|route| {
        // A name may look like a call: only where there is one it is read as one.
        let template = without_call(route.path);
        spelled(&template, if template == route.path { &given } else { &called })
    })
}

/// The segments of a path, without the version.
fn segments(path: &str) -> Vec<&str> {
    let mut segments: Vec<&str> = path.split('/').collect();
    if segments.get(1).is_some_and(|version| version.eq_ignore_ascii_case("v1.0")) {
        segments.remove(1);
    }
    segments
}

/// The path with an OData function call at its end as plain segments, in the order of the parameters' names:
/// `findbyip(ip='10.0.0.5',timestamp=..)` is `findbyip/10.0.0.5/..`. The router knows no other parameters.
pub(super) fn without_call(path: &str) -> Cow<'_, str> {
    const PARAMETERS_MAX: usize = 8;
    let plain = Cow::Borrowed(path);
    // Many clients encode the quotes.
    let decoded = path.replace("%27", "'").replace("%2C", ",").replace("%2c", ",").replace("%3D", "=");
    let decoded = decoded.replace("%3d", "=").replace("%28", "(").replace("%29", ")");
    let Some((name, parameters)) = decoded.strip_suffix(')').and_then(|path| path.split_once('(')) else {
        return plain;
    };
    let parameters =
        parameters.split(',').take(PARAMETERS_MAX + 1).map(parameter).collect::<Option<Vec<_>>>();
    let Some(mut parameters) = parameters.filter(|all| all.len() <= PARAMETERS_MAX) else { return plain };
    parameters.sort_by_key(|(name, _)| name.to_ascii_lowercase());
    let values = parameters.iter().map(|(_, value)| format!("/{value}"));
    Cow::Owned(std::iter::once(name.to_owned()).chain(values).collect())
}

/// A parameter of a call: a name, and a value that is one plain segment.
fn parameter(text: &str) -> Option<(&str, &str)> {
    let (name, value) = text.split_once('=')?;
    let (name, value) = (name.trim(), value.trim().trim_matches('\''));
    let is_plain = !name.is_empty()
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric())
        && !value.contains(['(', ')', '/']);
    is_plain.then_some((name, value))
}

/// The given segments, the fixed ones as the template spells them; none when it does not match.
fn spelled(template: &str, given: &[&str]) -> Option<String> {
    let wanted: Vec<&str> = template.split('/').skip(1).collect();
    if wanted.len() != given.len() {
        return None;
    }
    let mut path = String::new();
    for (wanted, given) in wanted.iter().zip(given) {
        let segment = if wanted.starts_with('{') {
            (!given.is_empty()).then_some(*given)
        } else {
            // Many clients encode the sign that OData's own segments start with.
            given.replacen("%24", "$", 1).eq_ignore_ascii_case(wanted).then_some(*wanted)
        }?;
        path.push('/');
        path.push_str(segment);
    }
    Some(path)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn fixed_segments_are_respelled_and_values_are_kept() {
        let table = [
            ("/api/machines", Some("/api/machines")),
            ("/API/Machines/", Some("/api/machines")),
            ("/api/v1.0/MachineActions", Some("/api/machineactions")),
            (
                "/api/V1.0/machines/LAB-042/RESTRICTCODEEXECUTION",
                Some("/api/machines/LAB-042/restrictCodeExecution"),
            ),
            ("/api/machines/a%2Fb/machineActions", Some("/api/machines/a%2Fb/machineactions")),
            ("/api/machines/%24count", Some("/api/machines/$count")),
            ("/api/machines/$COUNT", Some("/api/machines/$count")),
            ("/api/Cordon/V1/executionevents", Some("/api/cordon/v1/executionEvents")),
            (
                "/api/machines/FindByIp(ip='10.0.0.5',timestamp=2026-11-23T11:38:59Z)",
                Some("/api/machines/findbyip/10.0.0.5/2026-11-23T11:38:59Z"),
            ),
            (
                "/api/machines/findbyip(timestamp=2026-11-23T11:38:59Z,ip=%27::1%27)",
                Some("/api/machines/findbyip/::1/2026-11-23T11:38:59Z"),
            ),
            ("/api/machines/findbyip()", Some("/api/machines/findbyip()")),
            ("/api/cordon/v1/roles/Team (tier=1)", Some("/api/cordon/v1/roles/Team (tier=1)")),
            ("/api/machines//restrictCodeExecution", None),
            ("/api//machines", None),
            ("/api/machines//", None),
            ("/api/v1.0", None),
            ("/api/v1.0/v1.0/machines", None),
            ("/api/v2.0/machines", None),
            ("/machines", None),
            ("/", None),
            ("", None),
            ("*", None),
        ];
        for (given, expected) in table {
            assert_eq!(canonical_path(given).as_deref(), expected, "{given}");
        }
    }

    #[test]
    fn every_route_is_its_own_canonical_path() {
        for route in ROUTES.iter() {
            let plain = without_call(route.path);
            assert_eq!(canonical_path(route.path).as_deref(), Some(&*plain));
            let shouted = format!("{}/", route.path.to_uppercase().replace("/API", "/API/v1.0"));
            let parameters_shouted: String = plain
                .split('/')
                .map(|part| if part.starts_with('{') { part.to_uppercase() } else { part.to_owned() })
                .collect::<Vec<_>>()
                .join("/");
            assert_eq!(canonical_path(&shouted), Some(parameters_shouted));
        }
    }

    /// Paths of pieces that mean something, and of anything.
    fn paths() -> impl Strategy<Value = String> {
        let pieces = "/ /api /API /v1.0 /machines /findbyip /MachineActions /cordon/v1 /%24count /$count /tags ( ) \
                      %28 %29 ip= timestamp= ' %27 , %2C = %3d % .. {machine} 10.0.0.5";
        let pieces: Vec<&str> = pieces.split_ascii_whitespace().collect();
        let piece = prop_oneof![8 => prop::sample::select(pieces).prop_map(str::to_owned), 1 => ".{0,4}"];
        prop_oneof![
            prop::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat()),
            "/api/machines/findbyip\\(ip=.{0,8},timestamp=.{0,8}\\)",
        ]
    }

    proptest! {
        #[test]
        fn a_canonical_path_stays_as_it_is(path in paths()) {
            if let Some(canonical) = canonical_path(&path) {
                prop_assert!(canonical.len() <= path.len(), "{canonical}");
                prop_assert_eq!(canonical_path(&canonical), Some(canonical));
            }
        }
    }

    #[test]
    fn a_long_call_is_read_once() {
        // Each parameter looks like a call, too.
        let call = format!("/api/machines/findbyip({})", "ip=(a=b),".repeat(100_000));
        assert_eq!(canonical_path(&call), Some(call.clone()));
    }

    #[test]
    fn the_query_is_kept() {
        let uri: Uri = "https://cordon.example/API/machines/?$filter=ID%20eq%20'A'".parse().unwrap();
        assert_eq!(canonical_uri(&uri).unwrap(), "https://cordon.example/api/machines?$filter=ID%20eq%20'A'");
    }
}
