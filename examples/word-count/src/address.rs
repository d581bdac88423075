//! Checks the addresses of pages: no URL, redirect or name may lead to an address that only this machine can reach.

use std::net::IpAddr;
use std::sync::LazyLock;

use hyper::Uri;
use hyper::http::uri::Scheme;
use hyper_util::rt::TokioIo;
use ipnet::IpNet;
use tokio::net::{TcpStream, lookup_host};
use tower::BoxError;
use url::Url;

/// The longest URL, in bytes.
const LONGEST: usize = 2048;

/// The networks that are not public, from the registries of special-purpose addresses (RFC 6890). For IPv6 these are all
/// that are not global unicast, and those that embed an address of IPv4. No registry has 168.63.129.16, where Azure
/// serves its virtual machines.
static SPECIAL: LazyLock<Vec<IpNet>> = LazyLock::new(|| {
    let nets = "0.0.0.0/8 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 168.63.129.16/32 169.254.0.0/16 172.16.0.0/12 \
                192.0.0.0/24 192.0.2.0/24 192.88.99.0/24 192.168.0.0/16 198.18.0.0/15 198.51.100.0/24 203.0.113.0/24 \
                224.0.0.0/3 ::/3 2001::/23 2001:db8::/32 2002::/16 3fff::/20 4000::/2 8000::/1";
    nets.split(' ').map(|net| net.parse().expect("it is a network")).collect()
});

/// Whether this is an address of the public internet.
#[must_use]
pub fn is_public(address: IpAddr) -> bool {
    let address = address.to_canonical();
    !SPECIAL.iter().any(|net| net.contains(&address))
}

/// No page can have this URL. The message does not repeat it, because it may contain a password.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "it is no address of a page: write http:// or https://, a host, and no user, in {LONGEST} bytes"
)]
pub struct InvalidUrl;

/// Parses the URL of a page. The address of its host is checked when it is called.
///
/// # Errors
///
/// If it is no URL, has another scheme than http and https, no host, or a user.
pub fn check(text: &str) -> Result<Url, InvalidUrl> {
    // A URL of these schemes does not parse without a host.
    let is_right =
        |url: &Url| ["http", "https"].contains(&url.scheme()) && !url.authority().contains('@');
    let url = Url::parse(text).ok().filter(|url| text.len() <= LONGEST && is_right(url));
    url.ok_or(InvalidUrl)
}

/// A host has no allowed address.
#[derive(Debug, thiserror::Error)]
#[error("{0} is not on the public internet; ALLOW_PRIVATE allows that")]
pub(crate) struct NotPublic(pub(crate) String);

/// Connects to the host of this URL, at one of its allowed addresses. The name is resolved here and nowhere else, so the
/// connection goes to the address that was checked.
pub(crate) async fn connect(
    url: Uri,
    is_allowed: fn(IpAddr) -> bool,
) -> Result<TokioIo<TcpStream>, BoxError> {
    let host = url.host().unwrap_or_default().trim_matches(['[', ']']);
    let usual_port = if url.scheme() == Some(&Scheme::HTTPS) { 443 } else { 80 };
    let found = lookup_host((host, url.port_u16().unwrap_or(usual_port))).await?;
    let allowed: Vec<_> = found.filter(|address| is_allowed(address.ip())).collect();
    if allowed.is_empty() {
        return Err(NotPublic(host.to_owned()).into());
    }
    Ok(TokioIo::new(TcpStream::connect(&*allowed).await?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn special_addresses_are_not_public() {
        for address in [
            "127.0.0.1",
            "10.1.2.3",
            "169.254.169.254",
            "168.63.129.16",
            "100.64.0.1",
            "192.168.0.1",
            "0.0.0.0",
            "224.0.0.1",
            "255.255.255.255",
            "::1",
            "::",
            "::ffff:10.0.0.1",
            "64:ff9b::a00:1",
            "fe80::1",
            "fd00::1",
            "ff02::1",
            "2002:a00:1::",
            "2001:db8::1",
        ] {
            assert!(!is_public(address.parse().unwrap()), "{address}");
        }
        for address in ["1.1.1.1", "172.32.0.1", "2606:4700:4700::1111", "::ffff:1.1.1.1"] {
            assert!(is_public(address.parse().unwrap()), "{address}");
        }
    }

    #[test]
    fn error_for_an_invalid_url_shows_a_valid_one() {
        for text in [
            "",
            "example.com",
            "file:///etc/passwd",
            "ftp://example.com",
            "http://a@example.com",
            "http://",
        ] {
            let error = check(text).unwrap_err().to_string();
            assert!(error.contains("write http:// or https://"), "{error}");
        }
        // Another spelling of an address is parsed as that address.
        assert_eq!(check("http://0x7f.1/").unwrap().host_str(), Some("127.0.0.1"));
        assert!(check(&format!("http://example.com/{}", "a".repeat(LONGEST))).is_err());
    }
}
