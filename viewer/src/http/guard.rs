//! Who may ask: browsers that have the page open under a name of ours, and nobody in the name of another
//! site.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header, uri::Authority};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::problem::Problem;
use crate::Viewer;

/// What every answer says: take nothing from anywhere else, and let nobody else show it.
const HEADERS: [(HeaderName, &str); 6] = [
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
         img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
         require-trusted-types-for 'script'",
    ),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::REFERRER_POLICY, "no-referrer"),
    (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    // What is no file of the page is of the moment.
    (header::CACHE_CONTROL, "no-store"),
];

pub(super) async fn guard(
    State(viewer): State<Arc<Viewer>>,
    request: Request,
    next: Next,
) -> Response {
    let refusal = refusal(request.method(), request.headers(), &viewer.settings.viewer_hosts);
    let mut answer = match refusal {
        Some(refusal) => refusal.into_response(),
        None => next.run(request).await,
    };
    for (name, value) in HEADERS {
        answer.headers_mut().entry(name).or_insert(HeaderValue::from_static(value));
    }
    answer
}

/// Why this is not answered, if it is not.
fn refusal(method: &Method, headers: &HeaderMap, hosts: &[String]) -> Option<Problem> {
    let value = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    let host = value(header::HOST).unwrap_or_default();
    if !is_ours(host, hosts) {
        // Another site that has its name point here would be one with the page, for a browser.
        let detail = "this page is not known under that name; VIEWER_HOSTS lists its names";
        return Some(Problem::new(StatusCode::MISDIRECTED_REQUEST, detail));
    }
    if [Method::GET, Method::HEAD].contains(method) {
        return None;
    }
    let refuse = |detail: &str| Some(Problem::new(StatusCode::FORBIDDEN, detail));
    let site = value(HeaderName::from_static("sec-fetch-site"));
    if site.is_some_and(|site| site != "same-origin") {
        return refuse("only the page itself may ask for that");
    }
    let origin = value(header::ORIGIN).map(|origin| origin.split_once("://").map(|it| it.1));
    if origin.is_some_and(|origin| origin != Some(host)) {
        return refuse("only the page itself may ask for that");
    }
    // Nor a form of another site, which can send no JSON.
    let content = value(header::CONTENT_TYPE).unwrap_or_default();
    if content.split(';').next().map(str::trim) != Some("application/json") {
        let detail = "the body has to be application/json";
        return Some(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, detail));
    }
    None
}

/// Whether the page is known under this name. An address is nobody's name, so no other site can have it.
fn is_ours(host: &str, hosts: &[String]) -> bool {
    let Ok(authority) = host.parse::<Authority>() else { return false };
    let name = authority.host();
    name == "localhost"
        || name.ends_with(".localhost")
        || name.trim_matches(['[', ']']).parse::<IpAddr>().is_ok()
        || hosts.iter().any(|ours| ours.eq_ignore_ascii_case(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(method: &Method, headers: &[(&'static str, &'static str)]) -> Option<u16> {
        let headers = headers
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
        let hosts = ["viewer.example".to_owned()];
        let refusal = refusal(method, &headers.collect(), &hosts)?;
        Some(refusal.into_response().status().as_u16())
    }

    #[test]
    fn the_page_has_the_names_that_were_given_to_it() {
        for ours in ["localhost:8085", "127.0.0.1:8085", "[::1]:8085", "10.0.0.1", "Viewer.example"]
        {
            assert_eq!(status(&Method::GET, &[("host", ours)]), None, "{ours}");
        }
        for other in ["", "evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "a b"]
        {
            assert_eq!(status(&Method::GET, &[("host", other)]), Some(421), "{other}");
        }
    }

    #[test]
    fn only_the_page_itself_may_change_something() {
        let host = ("host", "localhost:8085");
        let json = ("content-type", "application/json");
        let own = ("origin", "http://localhost:8085");
        let post = |more: &[(&'static str, &'static str)]| {
            status(&Method::POST, &[[host].as_slice(), more].concat())
        };
        assert_eq!(post(&[json]), None);
        assert_eq!(post(&[json, own, ("sec-fetch-site", "same-origin")]), None);
        assert_eq!(post(&[json, own, ("sec-fetch-site", "cross-site")]), Some(403));
        assert_eq!(post(&[json, ("sec-fetch-site", "same-site")]), Some(403));
        for other in ["http://localhost:9", "http://evil.example", "null"] {
            assert_eq!(post(&[json, ("origin", other)]), Some(403), "{other}");
        }
        for other in ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"] {
            assert_eq!(post(&[own, ("content-type", other)]), Some(415), "{other}");
        }
        assert_eq!(post(&[own]), Some(415));
    }
}
