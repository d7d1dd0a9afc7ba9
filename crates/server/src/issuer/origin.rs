//! Where a browser's request comes from: a page here, or another site's.
//!
//! Another site can make a browser send forms here, and could spend its person's attempts with them, or have a device
//! approved or declined. Browsers say where a request began (`Sec-Fetch-Site`, `Origin`), and no page can change that.
//! Whoever is no browser says nothing, and is let through: it has no person to mislead.

use std::convert::Infallible;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, header};

/// What a person reads whose form came from elsewhere.
pub(super) const FOREIGN: &str = "The form was sent by another site, or by a page that is not this server's. Open the page here, and begin again.";

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// What a request says of where it began.
#[derive(Debug, Default)]
pub(super) struct Origin {
    /// None of a request without one. What cannot be read stands as an empty text.
    site: Option<String>,
    origin: Option<String>,
    /// The host, and perhaps the port, that the browser believes to talk to.
    host: Option<String>,
}

impl<S: Sync> FromRequestParts<S> for Origin {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        let host = parts.uri.authority().map(ToString::to_string);
        Ok(Self {
            site: only(&parts.headers, &SEC_FETCH_SITE),
            origin: only(&parts.headers, &header::ORIGIN),
            host: host.or_else(|| only(&parts.headers, &header::HOST)),
        })
    }
}

impl Origin {
    /// Whether a browser says that the request began elsewhere. `public_url` is where people are sent; they may also have
    /// come by another name of the server.
    pub(super) fn is_foreign(&self, public_url: &str) -> bool {
        match self.site.as_deref() {
            // `none`: the person typed the address, or opened a bookmark.
            Some("same-origin" | "none") => return false,
            Some(_) => return true,
            None => {}
        }
        let Some(origin) = self.origin.as_deref() else { return false };
        let own = public_url.split('/').take(3).collect::<Vec<_>>().join("/");
        let by_host = self.host.as_deref().map(|host| format!("https://{host}"));
        !origin.eq_ignore_ascii_case(&own) && !by_host.is_some_and(|own| origin.eq_ignore_ascii_case(&own))
    }
}

/// A header's only value.
fn only(headers: &HeaderMap, name: &HeaderName) -> Option<String> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?;
    let text = value.to_str().ok().filter(|_| values.next().is_none());
    Some(text.unwrap_or_default().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_browsers_say_counts() {
        const OWN: &str = "https://cordon.example:8443";
        for (site, origin, host, foreign) in [
            (None, None, None, false),
            (Some("same-origin"), None, None, false),
            (Some("same-origin"), Some("null"), None, false),
            (Some("none"), None, None, false),
            (Some("cross-site"), None, None, true),
            (Some("cross-site"), Some(OWN), None, true),
            (Some("same-site"), None, None, true),
            (Some(""), None, None, true),
            (None, Some(OWN), None, false),
            (None, Some("https://CORDON.example:8443"), None, false),
            (None, Some("https://10.0.0.5"), Some("10.0.0.5"), false),
            (None, Some("https://cordon.example"), Some("cordon.example:8443"), true),
            (None, Some("https://evil.example"), Some("cordon.example:8443"), true),
            (None, Some("http://cordon.example:8443"), None, true),
            (None, Some("null"), None, true),
            (None, Some(""), None, true),
        ] {
            let text = |value: Option<&str>| value.map(str::to_owned);
            let said = Origin { site: text(site), origin: text(origin), host: text(host) };
            assert_eq!(said.is_foreign(&format!("{OWN}/")), foreign, "{said:?}");
        }
    }

    #[test]
    fn a_header_that_is_there_twice_is_nothing_to_trust() {
        let mut headers = HeaderMap::new();
        assert_eq!(only(&headers, &SEC_FETCH_SITE), None);
        for expected in ["same-origin", ""] {
            headers.append(SEC_FETCH_SITE, axum::http::HeaderValue::from_static("same-origin"));
            assert_eq!(only(&headers, &SEC_FETCH_SITE).as_deref(), Some(expected));
        }
    }
}
