//! What a client asks of the token endpoint: a form, and perhaps HTTP Basic.
//!
//! Lenient where existing clients are odd (no `Content-Type`, unknown fields, a form with GET), strict where two
//! readings are possible.

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::http::{HeaderMap, header};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use super::refused::Refused;

/// The fields that count. Everything else in the form is ignored.
#[derive(Default)]
pub(super) struct TokenRequest {
    pub(super) grant_type: Option<String>,
    pub(super) client_id: Option<String>,
    pub(super) client_secret: Option<Zeroizing<String>>,
    pub(super) client_assertion_type: Option<String>,
    pub(super) client_assertion: Option<String>,
    /// What a token of version 1 is for.
    pub(super) resource: Option<String>,
    /// What a token of version 2 is for.
    pub(super) scope: Option<String>,
    /// An authorization code.
    pub(super) code: Option<Zeroizing<String>>,
    /// What the code's challenge was made of.
    pub(super) code_verifier: Option<Zeroizing<String>>,
    /// Where the code was sent.
    pub(super) redirect_uri: Option<String>,
    pub(super) refresh_token: Option<Zeroizing<String>>,
    pub(super) device_code: Option<Zeroizing<String>>,
    pub(super) username: Option<String>,
    pub(super) password: Option<Zeroizing<String>>,
    /// `1` from the vendor's client libraries, which want to know whose tokens they are.
    pub(super) client_info: Option<String>,
    /// The credentials came by HTTP Basic.
    pub(super) by_header: bool,
}

/// Why a request cannot be read, in words for the caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Unreadable(pub(super) String);

impl TokenRequest {
    /// Reads a form as it arrived, or did not.
    pub(super) fn of(headers: &HeaderMap, form: Result<Bytes, BytesRejection>) -> Result<Self, Refused> {
        let form = form.map_err(|rejection| {
            Refused::new(rejection.status(), "invalid_request", 90_016, rejection.body_text())
        })?;
        Self::read(headers, &form).map_err(|unreadable| Refused::request(90_016, unreadable.0))
    }

    /// Reads the form, whatever its content type says, and the header.
    pub(super) fn read(headers: &HeaderMap, form: &[u8]) -> Result<Self, Unreadable> {
        let mut request = Self::default();
        for (name, value) in form_urlencoded::parse(form) {
            let value = value.into_owned();
            match &*name {
                "grant_type" => once(&mut request.grant_type, &name, value)?,
                "client_id" => once(&mut request.client_id, &name, value)?,
                "client_secret" => once(&mut request.client_secret, &name, Zeroizing::new(value))?,
                "client_assertion_type" => once(&mut request.client_assertion_type, &name, value)?,
                "client_assertion" => once(&mut request.client_assertion, &name, value)?,
                "resource" => once(&mut request.resource, &name, value)?,
                "scope" => once(&mut request.scope, &name, value)?,
                "code" => once(&mut request.code, &name, Zeroizing::new(value))?,
                "code_verifier" => once(&mut request.code_verifier, &name, Zeroizing::new(value))?,
                "redirect_uri" => once(&mut request.redirect_uri, &name, value)?,
                "refresh_token" => once(&mut request.refresh_token, &name, Zeroizing::new(value))?,
                "device_code" => once(&mut request.device_code, &name, Zeroizing::new(value))?,
                "username" => once(&mut request.username, &name, value)?,
                "password" => once(&mut request.password, &name, Zeroizing::new(value))?,
                "client_info" => once(&mut request.client_info, &name, value)?,
                _ => {}
            }
        }
        if let Some(value) = headers.get(header::AUTHORIZATION) {
            request.add_header(value.as_bytes())?;
        }
        Ok(request)
    }

    /// RFC 6749, section 2.3.1: both parts are form-encoded, then joined by a colon.
    fn add_header(&mut self, value: &[u8]) -> Result<(), Unreadable> {
        let unreadable = || {
            Unreadable("The Authorization header is not 'Basic' with a client id and a secret.".to_owned())
        };
        let text = std::str::from_utf8(value).map_err(|_not_text| unreadable())?;
        let (scheme, encoded) = text.split_once(' ').ok_or_else(unreadable)?;
        if !scheme.eq_ignore_ascii_case("basic") {
            return Err(unreadable());
        }
        let decoded = Zeroizing::new(STANDARD.decode(encoded.trim()).map_err(|_not_base64| unreadable())?);
        let text = std::str::from_utf8(&decoded).map_err(|_not_text| unreadable())?;
        let (id, secret) = text.split_once(':').ok_or_else(unreadable)?;
        let (id, secret) = (form_decoded(id), Zeroizing::new(form_decoded(secret)));
        if self.client_secret.is_some() || self.client_id.as_ref().is_some_and(|other| *other != id) {
            return Err(Unreadable(
                "The form and the Authorization header both hold credentials.".to_owned(),
            ));
        }
        self.client_id = Some(id);
        self.client_secret = Some(secret);
        self.by_header = true;
        Ok(())
    }
}

/// Sets a field that may be there once.
pub(super) fn once<T>(field: &mut Option<T>, name: &str, value: T) -> Result<(), Unreadable> {
    if field.replace(value).is_some() {
        return Err(Unreadable(format!("The request has more than one '{name}'.")));
    }
    Ok(())
}

fn form_decoded(text: &str) -> String {
    // A name without a value: everything up to `=` or `&`, which the encoding escapes.
    let pair = [b"x=".as_slice(), text.as_bytes()].concat();
    form_urlencoded::parse(&pair).next().map(|(_, value)| value.into_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn read(form: &str, authorization: Option<&str>) -> Result<TokenRequest, Unreadable> {
        let mut headers = HeaderMap::new();
        if let Some(value) = authorization {
            headers.insert(header::AUTHORIZATION, HeaderValue::from_str(value).unwrap());
        }
        TokenRequest::read(&headers, form.as_bytes())
    }

    fn basic(text: &str) -> String {
        format!("Basic {}", STANDARD.encode(text))
    }

    #[test]
    fn the_form_is_decoded_and_extras_ignored() {
        let form = "grant_type=client_credentials&client_id=a&client_secret=s%2B%26%3D+%C3%A9\
                    &scope=offline_access+https%3A%2F%2Fx%2F.default&client_info=1&redirectUri=y&&=";
        let request = read(form, None).unwrap();
        assert_eq!(request.grant_type.as_deref(), Some("client_credentials"));
        assert_eq!(request.client_secret.unwrap().as_str(), "s+&= é");
        assert_eq!(request.scope.as_deref(), Some("offline_access https://x/.default"));
        assert!(!request.by_header);
    }

    #[test]
    fn basic_credentials_are_form_decoded() {
        let request = read("grant_type=client_credentials", Some(&basic("a%3A:s%25:%2B"))).unwrap();
        assert_eq!(request.client_id.as_deref(), Some("a:"));
        assert_eq!(request.client_secret.unwrap().as_str(), "s%:+");
        assert!(request.by_header);
        let same = read("client_id=a", Some(&basic("a:s"))).unwrap();
        assert_eq!(same.client_id.as_deref(), Some("a"));
    }

    #[test]
    fn what_can_be_read_in_two_ways_is_refused() {
        for (form, authorization) in [
            ("client_id=a&client_id=b", None),
            ("scope=a&scope=a", None),
            ("client_id=a&client_secret=s", Some(basic("a:s"))),
            ("client_id=b", Some(basic("a:s"))),
            ("", Some("Basic".to_owned())),
            ("", Some("Basic !".to_owned())),
            ("", Some("Bearer abc".to_owned())),
            ("", Some(basic("no-colon"))),
        ] {
            assert!(read(form, authorization.as_deref()).is_err(), "{form} {authorization:?}");
        }
    }

    #[test]
    fn bytes_that_are_no_form_hold_nothing() {
        let request = TokenRequest::read(&HeaderMap::new(), &[0xff, 0, b'%', b'&', b'=', 0xfe]).unwrap();
        assert!(request.grant_type.is_none() && request.client_id.is_none());
    }
}
