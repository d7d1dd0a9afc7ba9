//! The pages that people see when they sign in: small, without scripts, in one style that follows the system's colors.
//!
//! Owns the escaping, and what a browser may do with a page: load nothing, be framed by nobody, send forms only here
//! and to where the app is. Deliberately holds no text of a particular page.

use std::fmt::Write as _;
use std::sync::LazyLock;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::Digest as _;

use super::refused::not_stored;

const STYLE: &str = "\
:root{color-scheme:light dark;--line:#8a8f98;--strong:#1d4ed8;--on-strong:#fff;--bad:#b42318}\
@media(prefers-color-scheme:dark){:root{--strong:#93b4ff;--on-strong:#0b1220;--bad:#ff9c8f}}\
*{box-sizing:border-box}\
body{margin:0;font:1rem/1.5 system-ui,sans-serif}\
main{max-width:27rem;margin:8vh auto;padding:0 1.25rem}\
h1{font-size:1.4rem;margin:0 0 1rem}\
label{display:block;margin:1rem 0 .25rem;font-weight:600}\
input{width:100%;padding:.6rem;font:inherit;border:1px solid var(--line);border-radius:.35rem}\
button{margin:1.25rem .5rem 0 0;padding:.6rem 1.1rem;font:inherit;border:1px solid var(--line);border-radius:.35rem;\
background:transparent;color:inherit;cursor:pointer}\
button.main{background:var(--strong);border-color:var(--strong);color:var(--on-strong);font-weight:600}\
:focus-visible{outline:3px solid var(--strong);outline-offset:2px}\
ul{margin:.25rem 0;padding-left:1.25rem}\
.bad{border-left:4px solid var(--bad);padding-left:.75rem;color:var(--bad)}\
.code{font-family:ui-monospace,monospace;letter-spacing:.1em}\
";

/// The header value that allows [`STYLE`] and nothing else.
static STYLE_SOURCE: LazyLock<String> =
    LazyLock::new(|| format!("'sha256-{}'", STANDARD.encode(sha2::Sha256::digest(STYLE))));

/// A page under construction. Every text that is put into it is escaped.
pub(super) struct Page {
    title: String,
    body: String,
    /// Where forms may be sent besides here.
    form_target: Option<String>,
}

impl Page {
    pub(super) fn new(title: &str) -> Self {
        Self { title: title.to_owned(), body: String::new(), form_target: None }
    }

    /// Lets forms of the page end at this address of an app.
    pub(super) fn sends_to(mut self, uri: &str) -> Self {
        self.form_target = Some(source_of(uri));
        self
    }

    pub(super) fn paragraph(mut self, text: &str) -> Self {
        self.push(format_args!("<p>{}</p>", escaped(text)));
        self
    }

    /// What went wrong, read out by screen readers at once.
    pub(super) fn fault(mut self, text: &str) -> Self {
        self.push(format_args!("<p class=\"bad\" role=\"alert\">{}</p>", escaped(text)));
        self
    }

    pub(super) fn list<'a>(mut self, lead: &str, items: impl IntoIterator<Item = &'a str>) -> Self {
        self.push(format_args!("<p>{}</p><ul>", escaped(lead)));
        for item in items {
            self.push(format_args!("<li>{}</li>", escaped(item)));
        }
        self.push(format_args!("</ul>"));
        self
    }

    #[expect(clippy::needless_pass_by_value, reason = "a form is put into one page")]
    pub(super) fn form(mut self, form: Form) -> Self {
        self.body.push_str(&form.html);
        self.body.push_str("</form>\n");
        self
    }

    pub(super) fn response(self, status: StatusCode) -> Response {
        let html = format!(
            "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
             <meta name=\"robots\" content=\"noindex\">\n<title>{title} - Cordon</title>\n\
             <style>{STYLE}</style>\n</head>\n<body>\n<main>\n<h1>{title}</h1>\n{body}</main>\n</body>\n</html>\n",
            title = escaped(&self.title),
            body = self.body,
        );
        let target = self.form_target.map(|target| format!(" {target}")).unwrap_or_default();
        let policy = format!(
            "default-src 'none'; style-src {}; form-action 'self'{target}; frame-ancestors 'none'; base-uri 'none'",
            *STYLE_SOURCE
        );
        let mut response = (status, html).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
        let strictest = HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'");
        let policy = HeaderValue::from_str(&policy).unwrap_or(strictest);
        headers.insert(header::CONTENT_SECURITY_POLICY, policy);
        headers.insert(header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
        // Without a referrer, browsers hide from us too that a form came from here.
        headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("same-origin"));
        not_stored(response)
    }

    fn push(&mut self, html: std::fmt::Arguments<'_>) {
        // Writing to a text does not fail.
        let _written = self.body.write_fmt(html);
        self.body.push('\n');
    }
}

/// A form under construction.
pub(super) struct Form {
    html: String,
}

impl Form {
    pub(super) fn post(action: &str) -> Self {
        Self { html: format!("<form method=\"post\" action=\"{}\">\n", escaped(action)) }
    }

    pub(super) fn get(action: &str) -> Self {
        Self { html: format!("<form method=\"get\" action=\"{}\">\n", escaped(action)) }
    }

    pub(super) fn hidden(mut self, name: &str, value: &str) -> Self {
        self.push(format_args!(
            "<input type=\"hidden\" name=\"{}\" value=\"{}\">",
            escaped(name),
            escaped(value)
        ));
        self
    }

    /// A field that must be filled in; `attributes` are HTML.
    pub(super) fn field(mut self, name: &str, label: &str, value: &str, attributes: &str) -> Self {
        self.push(format_args!(
            "<label for=\"{name}\">{}</label>\n<input id=\"{name}\" name=\"{name}\" value=\"{}\" required {attributes}>",
            escaped(label),
            escaped(value),
            name = escaped(name),
        ));
        self
    }

    /// The fields for name and password.
    pub(super) fn credentials(self, name: &str) -> Self {
        const NAME: &str =
            "autocomplete=\"username\" autocapitalize=\"none\" spellcheck=\"false\" maxlength=\"128\"";
        const PASSWORD: &str = "type=\"password\" autocomplete=\"current-password\" maxlength=\"1024\"";
        self.field("username", "Name", name, NAME).field("password", "Password", "", PASSWORD)
    }

    /// The button that stands for going on.
    pub(super) fn submit(mut self, decision: &str, label: &str) -> Self {
        self.push(format_args!(
            "<button class=\"main\" name=\"decision\" value=\"{}\">{}</button>",
            escaped(decision),
            escaped(label)
        ));
        self
    }

    /// A button that sends nothing of its own.
    pub(super) fn plain_submit(mut self, label: &str) -> Self {
        self.push(format_args!("<button class=\"main\">{}</button>", escaped(label)));
        self
    }

    /// A button that needs no filled fields.
    pub(super) fn decline(mut self, decision: &str, label: &str) -> Self {
        self.push(format_args!(
            "<button name=\"decision\" value=\"{}\" formnovalidate>{}</button>",
            escaped(decision),
            escaped(label)
        ));
        self
    }

    fn push(&mut self, html: std::fmt::Arguments<'_>) {
        let _written = self.html.write_fmt(html);
        self.html.push('\n');
    }
}

/// A text for HTML, in elements and in quoted attributes.
pub(super) fn escaped(text: &str) -> String {
    let mut html = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => html.push_str("&amp;"),
            '<' => html.push_str("&lt;"),
            '>' => html.push_str("&gt;"),
            '"' => html.push_str("&quot;"),
            '\'' => html.push_str("&#39;"),
            // Signs that turn the direction of writing make a name look like another one.
            '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => html.push('\u{fffd}'),
            c if c.is_control() => html.push(' '),
            c => html.push(c),
        }
    }
    html
}

/// The origin of an address as a source of the policy; its scheme when the origin cannot be written as one.
fn source_of(uri: &str) -> String {
    let (scheme, rest) = uri.split_once("://").unwrap_or(("https", ""));
    let scheme = if scheme == "http" { "http" } else { "https" };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | ':');
    if authority.is_empty() || !authority.chars().all(plain) {
        return format!("{scheme}:");
    }
    format!("{scheme}://{authority}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_gets_out_of_its_place() {
        let evil = "\"><script>alert('x')</script>&amp;\u{0}\n\u{202e}";
        let html = escaped(evil);
        assert!(!html.contains(['<', '>', '"', '\'', '\u{0}', '\n', '\u{202e}']), "{html}");
        assert_eq!(escaped("a & b <c> \"d\" 'e' ü"), "a &amp; b &lt;c&gt; &quot;d&quot; &#39;e&#39; ü");
    }

    #[test]
    fn the_policy_names_the_origin_and_nothing_else() {
        for (uri, source) in [
            ("https://soar.example/callback?x=1", "https://soar.example"),
            ("https://soar.example:8443", "https://soar.example:8443"),
            ("http://127.0.0.1:5123/", "http://127.0.0.1:5123"),
            ("http://[::1]:5123/", "http:"),
            ("https://soar.example;script-src *", "https:"),
            ("https://*/x", "https:"),
            ("nothing", "https:"),
        ] {
            assert_eq!(source_of(uri), source, "{uri}");
        }
    }

    #[tokio::test]
    async fn a_page_may_do_nothing_but_send_its_form() {
        let page = Page::new("T<itle").sends_to("https://app.example/x").fault("a<b").paragraph("c&d");
        let form = Form::post("?a=\"b\"").hidden("x", "'").credentials("ann").submit("yes", "Sign in");
        let response = page.form(form).response(StatusCode::OK);
        let policy = response.headers()["content-security-policy"].to_str().unwrap().to_owned();
        assert!(policy.starts_with("default-src 'none'; style-src 'sha256-"), "{policy}");
        assert!(
            policy.contains("form-action 'self' https://app.example; frame-ancestors 'none'"),
            "{policy}"
        );
        let body = axum::body::to_bytes(response.into_body(), 100_000).await.unwrap();
        let html = String::from_utf8(body.to_vec()).unwrap();
        for part in [
            "lang=\"en\"",
            "<title>T&lt;itle - Cordon</title>",
            "a&lt;b",
            "c&amp;d",
            "action=\"?a=&quot;b&quot;\"",
            "<label for=\"password\">",
            "autocomplete=\"current-password\"",
            "value=\"&#39;\"",
        ] {
            assert!(html.contains(part), "{part}: {html}");
        }
        assert!(!html.contains("<script") && !html.contains("style=\""), "{html}");
    }
}
