//! Keeps pages of other sites away, which a browser would let ask in the name of whoever looks at them.

use std::net::{IpAddr, SocketAddr};

use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderValue, header};

use super::problem::{Kind, Problem};

/// Refuses what a browser sends for a page of another site: to `host`, where somebody listens on `addr`
/// who is known under `names`.
///
/// A browser tells where a page is from (`Sec-Fetch-Site`, `Origin`). It does not tell that a name of
/// the page's own leads here by now; but who listens on a loopback address has no name but one, unless
/// `names` says so, and who is told its names has no other.
pub(super) fn check(
    addr: &SocketAddr,
    names: &[String],
    host: Option<&Authority>,
    headers: &HeaderMap,
) -> Result<(), Problem> {
    let foreign = |detail| Err(Kind::Foreign.because(detail));
    let choosy = addr.ip().is_loopback() || !names.is_empty();
    if choosy && host.is_some_and(|host| !is_ours(host.host(), names)) {
        return foreign(
            "nobody here has this name: write 127.0.0.1 or localhost, or one of those in API_HOSTS",
        );
    }
    let site = headers.get("sec-fetch-site").map(HeaderValue::as_bytes);
    if site.is_some_and(|site| !matches!(site, b"same-origin" | b"none")) {
        return foreign("the browser says that a page of another site asks");
    }
    let Some(origin) = headers.get(header::ORIGIN) else { return Ok(()) };
    let of_ours = origin.to_str().ok().and_then(|origin| origin.split_once("://"));
    let is_host = |origin: &str| host.is_some_and(|host| host == origin);
    if of_ours.is_some_and(|(_, origin)| is_host(origin)) {
        Ok(())
    } else {
        foreign("the origin is another")
    }
}

/// Whether this names whoever listens here: by an address, which nobody can make lead elsewhere, by the
/// name that each machine has for itself, or by one of those it was told.
fn is_ours(name: &str, names: &[String]) -> bool {
    let address = name.trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost")
        || address.parse::<IpAddr>().is_ok()
        || names.iter().any(|ours| ours.eq_ignore_ascii_case(name))
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderName;

    use super::*;

    fn refused(addr: &str, headers: &[(&'static str, &'static str)]) -> bool {
        refused_as(&[], addr, headers)
    }

    fn refused_as(names: &[String], addr: &str, headers: &[(&'static str, &'static str)]) -> bool {
        let headers = headers
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
        let headers: HeaderMap = headers.collect();
        let host = headers.get(header::HOST).map(|host| host.as_bytes().try_into().unwrap());
        check(&addr.parse().unwrap(), names, host.as_ref(), &headers).is_err()
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

    #[test]
    fn who_is_told_its_names_has_no_other() {
        let names = ["requestor".to_owned()];
        for addr in ["127.0.0.1:8000", "0.0.0.0:8000"] {
            for ours in ["requestor:8000", "Requestor", "localhost", "10.0.0.1:8000"] {
                assert!(!refused_as(&names, addr, &[("host", ours)]), "{addr} {ours}");
            }
            for other in ["elsewhere.example:8000", "requestor.elsewhere.example"] {
                assert!(refused_as(&names, addr, &[("host", other)]), "{addr} {other}");
            }
        }
    }
}
