//! Who may ask: browsers that have the page open under a name of ours, and nobody in the name of another
//! site.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::to_bytes;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header, uri::Authority};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use tokio::time::timeout;

use super::problem::Problem;
use crate::Viewer;

/// The largest body that anything here asks for has some hundred bytes.
const MOST_BYTES: usize = 4096;

/// How long a body may take to come.
const BODY_TIME: Duration = Duration::from_secs(5);

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
    let hosts = &viewer.settings.viewer_hosts;
    let path = request.uri().path();
    let refusal = refusal(request.method(), path, request.headers(), hosts);
    let mut answer = match refusal {
        Some(refusal) => refusal.into_response(),
        None => match whole(request).await {
            Ok(request) => next.run(request).await,
            Err(problem) => problem.into_response(),
        },
    };
    for (name, value) in HEADERS {
        answer.headers_mut().entry(name).or_insert(HeaderValue::from_static(value));
    }
    answer
}

/// The request with its body, once all of that is there.
async fn whole(request: Request) -> Result<Request, Problem> {
    let (head, body) = request.into_parts();
    let body = timeout(BODY_TIME, to_bytes(body, MOST_BYTES))
        .await
        .map_err(|_| Problem::new(StatusCode::REQUEST_TIMEOUT, "the body did not come in time"))?;
    let body = body.map_err(|_| {
        Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "the body is too large, or came to no end")
    })?;
    Ok(Request::from_parts(head, body.into()))
}

/// Why this is not answered, if it is not.
fn refusal(method: &Method, path: &str, headers: &HeaderMap, hosts: &[String]) -> Option<Problem> {
    let value = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    let host = value(header::HOST).unwrap_or_default();
    if !is_ours(host, hosts) {
        // Another site that has its name point here would be one with the page, for a browser.
        let detail = "this page is not known under that name; VIEWER_HOSTS lists its names";
        return Some(Problem::new(StatusCode::MISDIRECTED_REQUEST, detail));
    }
    let refuse = |detail: &str| Some(Problem::new(StatusCode::FORBIDDEN, detail));
    let reads = [Method::GET, Method::HEAD].contains(method);
    // Another site may have a link to the page; what it shows is for the page alone, and for whoever
    // types its address.
    let site = value(HeaderName::from_static("sec-fetch-site"));
    let typed = reads && site == Some("none");
    let guarded = !reads || path.starts_with("/api/");
    if guarded && !typed && site.is_some_and(|site| site != "same-origin") {
        return refuse("only the page itself may ask for that");
    }
    if reads {
        return None;
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
        status_of(method, "/api/audit", headers)
    }

    fn status_of(
        method: &Method,
        path: &str,
        headers: &[(&'static str, &'static str)],
    ) -> Option<u16> {
        let headers = headers
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
        let hosts = ["viewer.example".to_owned()];
        let refusal = refusal(method, path, &headers.collect(), &hosts)?;
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
    fn another_site_may_link_to_the_page_and_read_nothing_behind_it() {
        let host = ("host", "localhost:8085");
        for (path, site, answer) in [
            ("/", "cross-site", None),
            ("/api/events", "same-origin", None),
            ("/api/events", "none", None),
            ("/api/events", "cross-site", Some(403)),
            ("/api/history", "same-site", Some(403)),
        ] {
            let headers = [host, ("sec-fetch-site", site)];
            assert_eq!(status_of(&Method::GET, path, &headers), answer, "{path} {site}");
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
