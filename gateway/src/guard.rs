//! Refuses ambiguous requests, and requests that a browser sends for the page of another site.

use std::net::IpAddr;

use axum::extract::Request;
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, header};

use crate::problem::{Problem, ProblemKind};

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Checks a request before it is answered. Other sites may link to a `linkable` one: a file of the page, which contains
/// no data.
///
/// A browser reports the site of the page that sends a request (`Sec-Fetch-Site`, `Origin`). It does not report that
/// another site has changed its own name to resolve to this gateway. So a host has to be an address, `localhost` or one
/// of `hosts`.
pub(crate) fn check<B>(
    request: &Request<B>,
    hosts: &[String],
    linkable: bool,
) -> Result<(), Problem> {
    let headers = request.headers();
    let host = host(headers)?;
    if !headers.get_all(header::TRANSFER_ENCODING).iter().all(|value| is(value, "chunked")) {
        return Err(ProblemKind::Coding.because("Transfer-Encoding may only be chunked"));
    }
    if !headers.get_all(header::EXPECT).iter().all(|value| is(value, "100-continue")) {
        return Err(ProblemKind::Expectation.because("Expect may only be 100-continue"));
    }
    // A host in the target overrides the header.
    let host = request.uri().authority().unwrap_or(&host);
    if !is_ours(host.host(), hosts) {
        return Err(ProblemKind::Foreign.because(
            "the gateway is not known under this name: write an address, localhost or a name that is \
             in GATEWAY_HOSTS",
        ));
    }
    let reads = [Method::GET, Method::HEAD].contains(request.method());
    let site = headers.get(SEC_FETCH_SITE).map(HeaderValue::as_bytes);
    let same_site = match site {
        None | Some(b"same-origin") => true,
        // A person typed the address.
        Some(b"none") => reads,
        Some(_) => reads && linkable,
    };
    if !same_site {
        return Err(ProblemKind::Foreign
            .because("the browser reports that a page of another site sent this"));
    }
    let origin = headers.get(header::ORIGIN).map(|origin| {
        origin.to_str().ok().and_then(|origin| origin.split_once("://")).map(|(_, host)| host)
    });
    if origin.is_some_and(|origin| origin.is_none_or(|origin| *host != *origin)) {
        return Err(ProblemKind::Foreign.because("the Origin is another site"));
    }
    Ok(())
}

fn is(value: &HeaderValue, word: &str) -> bool {
    value.as_bytes().eq_ignore_ascii_case(word.as_bytes())
}

fn host(headers: &HeaderMap) -> Result<Authority, Problem> {
    let mut hosts = headers.get_all(header::HOST).iter();
    let host = match (hosts.next(), hosts.next()) {
        (Some(host), None) => host,
        (None, _) => return Err(ProblemKind::Invalid.because("there is no Host")),
        _ => return Err(ProblemKind::Invalid.because("there is more than one Host")),
    };
    let host = Authority::try_from(host.as_bytes()).ok();
    let host = host.filter(|host| !host.as_str().contains('@'));
    host.ok_or_else(|| ProblemKind::Invalid.because("the Host is not a name with an optional port"))
}

/// Whether this is a name of the gateway: an address, which no other site can change, `localhost`, or one of `hosts`.
fn is_ours(name: &str, hosts: &[String]) -> bool {
    let address = name.trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost")
        || address.parse::<IpAddr>().is_ok()
        || hosts.iter().any(|ours| !ours.is_empty() && ours.eq_ignore_ascii_case(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    type Headers<'a> = &'a [(&'a str, &'a str)];

    /// The status of the refusal, if it is refused.
    fn refused(method: &str, uri: &str, headers: Headers<'_>, linkable: bool) -> Option<u16> {
        let mut request = Request::builder().method(method).uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let hosts = ["gateway.example".to_owned()];
        let checked = check(&request.body(()).unwrap(), &hosts, linkable);
        checked.err().map(|problem| problem.status())
    }

    fn post(headers: Headers<'_>) -> Option<u16> {
        refused("POST", "/requests", headers, false)
    }

    fn get(headers: Headers<'_>) -> Option<u16> {
        refused("GET", "/requests", headers, false)
    }

    #[test]
    fn programs_and_pages_of_the_same_origin_may_ask() {
        for ours in [
            "localhost:8080",
            "LOCALHOST",
            "127.0.0.1",
            "[::1]:8080",
            "10.0.0.1",
            "Gateway.example",
        ] {
            assert_eq!(post(&[("host", ours)]), None, "{ours}");
        }
        let host = ("host", "localhost:8080");
        assert_eq!(get(&[host, ("sec-fetch-site", "none")]), None);
        let same = [host, ("origin", "http://localhost:8080"), ("sec-fetch-site", "same-origin")];
        assert_eq!(post(&same), None);
    }

    #[test]
    fn pages_of_other_sites_may_not_ask() {
        for other in ["elsewhere.example:8080", "localhost.elsewhere.example", "gateway"] {
            assert_eq!(get(&[("host", other)]), Some(403), "{other}");
        }
        let host = ("host", "localhost:8080");
        for site in ["cross-site", "same-site", "", "Same-Origin"] {
            assert_eq!(get(&[host, ("sec-fetch-site", site)]), Some(403), "{site}");
            assert_eq!(post(&[host, ("sec-fetch-site", site)]), Some(403), "{site}");
        }
        assert_eq!(post(&[host, ("sec-fetch-site", "none")]), Some(403));
        for origin in ["http://elsewhere.example", "null", "", "http://localhost:3000"] {
            assert_eq!(post(&[host, ("origin", origin)]), Some(403), "{origin}");
        }
    }

    #[test]
    fn other_site_may_link_to_the_page() {
        let linked = [("host", "localhost"), ("sec-fetch-site", "cross-site")];
        assert_eq!(refused("GET", "/", &linked, true), None);
        assert_eq!(refused("POST", "/", &linked, true), Some(403));
        let foreign = [("host", "elsewhere.example"), ("sec-fetch-site", "cross-site")];
        assert_eq!(refused("GET", "/", &foreign, true), Some(403));
    }

    #[test]
    fn request_has_one_host_and_its_target_overrides_the_header() {
        assert_eq!(get(&[]), Some(400));
        assert_eq!(get(&[("host", "localhost"), ("host", "localhost")]), Some(400));
        for wrong in ["", "a b", "käse.example", "somebody@localhost", "http://localhost"] {
            assert_eq!(get(&[("host", wrong)]), Some(400), "{wrong}");
        }
        let absolute = "http://elsewhere.example/requests";
        assert_eq!(refused("GET", absolute, &[("host", "localhost")], false), Some(403));
    }

    #[test]
    fn unknown_codings_and_expectations_are_refused() {
        let with = |name, value| post(&[("host", "localhost"), (name, value)]);
        assert_eq!(with("transfer-encoding", "Chunked"), None);
        assert_eq!(with("transfer-encoding", "gzip, chunked"), Some(501));
        assert_eq!(with("expect", "100-Continue"), None);
        assert_eq!(with("expect", "a-miracle"), Some(417));
    }
}
