//! Keeps pages of other sites away, which a browser would let ask in the name of whoever looks at them.

use std::net::{IpAddr, SocketAddr};

use axum::http::{HeaderMap, Uri, header};

use super::problem::{Kind, Problem};

/// Refuses what a browser sends for a page of another site.
///
/// A browser tells where a page is from (`Sec-Fetch-Site`, `Origin`). It does not tell that a name of
/// the page's own leads here by now; but who listens on a loopback address has no name but one.
pub(super) fn check(addr: &SocketAddr, headers: &HeaderMap, uri: &Uri) -> Result<(), Problem> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let host = text(header::HOST).or(uri.authority().map(axum::http::uri::Authority::as_str));
    let foreign = |detail| Err(Kind::Foreign.because(detail));
    if addr.ip().is_loopback() && host.is_some_and(|host| !is_local(host)) {
        return foreign("this is no name of the machine's own: write 127.0.0.1 or localhost");
    }
    let site = headers.get("sec-fetch-site").map(axum::http::HeaderValue::as_bytes);
    if site.is_some_and(|site| !matches!(site, b"same-origin" | b"none")) {
        return foreign("the browser says that a page of another site asks");
    }
    let Some(origin) = headers.get(header::ORIGIN) else { return Ok(()) };
    let of_ours = origin.to_str().ok().and_then(|origin| origin.split_once("://"));
    if of_ours.is_some_and(|(_, origin)| host.is_some_and(|host| host.eq_ignore_ascii_case(origin)))
    {
        Ok(())
    } else {
        foreign("the origin is another")
    }
}

/// Whether this names the machine itself: by an address, which nobody can make lead elsewhere, or by
/// the name that each machine has for itself.
fn is_local(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let address = name.trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost") || address.parse::<IpAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use axum::http::{HeaderName, HeaderValue};

    use super::*;

    fn refused(addr: &str, headers: &[(&'static str, &'static str)]) -> bool {
        let headers = headers
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
        let headers: HeaderMap = headers.collect();
        check(&addr.parse().unwrap(), &headers, &Uri::from_static("/requests")).is_err()
    }

    #[test]
    fn programs_and_pages_of_the_same_origin_may_ask() {
        let here = "127.0.0.1:8000";
        for host in ["127.0.0.1:8000", "localhost:8000", "LOCALHOST", "[::1]:8000", "127.0.0.1"] {
            assert!(!refused(here, &[("host", host)]), "{host}");
        }
        assert!(!refused(here, &[]));
        assert!(!refused("0.0.0.0:8000", &[("host", "requestor:8000")]));
        assert!(!refused(here, &[("host", "localhost:8000"), ("sec-fetch-site", "none")]));
        let same = [("host", "localhost:8000"), ("origin", "http://localhost:8000")];
        assert!(!refused(here, &same));
    }

    #[test]
    fn pages_of_other_sites_may_not_ask() {
        let here = "127.0.0.1:8000";
        assert!(refused(here, &[("host", "elsewhere.example:8000")]));
        assert!(refused(here, &[("host", "localhost.elsewhere.example")]));
        for site in ["cross-site", "same-site", "", "Same-Origin"] {
            assert!(refused(here, &[("host", "localhost"), ("sec-fetch-site", site)]), "{site}");
        }
        for origin in ["http://elsewhere.example", "null", "", "http://localhost:3000"] {
            let headers = [("host", "localhost:8000"), ("origin", origin)];
            assert!(refused("0.0.0.0:8000", &headers), "{origin}");
        }
    }
}
