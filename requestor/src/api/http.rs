//! What HTTP asks of a request, and the server below lets through: what could be understood in two
//! ways is refused.

use axum::extract::Request;
use axum::http::uri::Authority;
use axum::http::{HeaderMap, Version, header};

use super::problem::{Kind, Problem};

/// Looks whether all of a request is understood, and gives the name that it is for, if it has one.
pub(super) fn check<B>(request: &Request<B>) -> Result<Option<Authority>, Problem> {
    let headers = request.headers();
    let host = host(headers, request.version())?;
    let chunked = |value: &axum::http::HeaderValue| is(value, "chunked");
    if !headers.get_all(header::TRANSFER_ENCODING).iter().all(chunked) {
        return Err(Kind::Coding.because("the only Transfer-Encoding is chunked"));
    }
    let continues = |value: &axum::http::HeaderValue| is(value, "100-continue");
    if !headers.get_all(header::EXPECT).iter().all(continues) {
        return Err(Kind::Expectation.because("the only expectation is 100-continue"));
    }
    // A target that names whom it is for counts more than what stands beside it.
    Ok(request.uri().authority().cloned().or(host))
}

fn is(value: &axum::http::HeaderValue, word: &str) -> bool {
    value.as_bytes().eq_ignore_ascii_case(word.as_bytes())
}

fn host(headers: &HeaderMap, version: Version) -> Result<Option<Authority>, Problem> {
    let mut hosts = headers.get_all(header::HOST).iter();
    let host = match (hosts.next(), hosts.next()) {
        (None, _) if version < Version::HTTP_11 => return Ok(None),
        (None, _) => return Err(Kind::Invalid.because("there is no Host")),
        (Some(host), None) => host,
        _ => return Err(Kind::Invalid.because("Host is there more than once")),
    };
    let host = Authority::try_from(host.as_bytes()).ok();
    let host = host.filter(|host| !host.as_str().contains('@'));
    host.map(Some)
        .ok_or_else(|| Kind::Invalid.because("the Host is no name with or without a port"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The name that it is for, or the status that refuses it.
    fn checked(version: Version, uri: &str, headers: &[(&str, &[u8])]) -> Result<String, u16> {
        let mut request = Request::builder().version(version).uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        match check(&request.body(()).unwrap()) {
            Ok(host) => Ok(host.map(|host| host.to_string()).unwrap_or_default()),
            Err(problem) => Err(problem.status()),
        }
    }

    #[test]
    fn a_request_is_for_one_name_and_its_target_counts_more_than_its_host() {
        let host = |host: &'static str| ("host", host.as_bytes());
        let new = |headers: &[(&str, &[u8])]| checked(Version::HTTP_11, "/requests", headers);
        assert_eq!(new(&[host("localhost:8000")]), Ok("localhost:8000".to_owned()));
        assert_eq!(new(&[]), Err(400));
        assert_eq!(checked(Version::HTTP_10, "/requests", &[]), Ok(String::new()));
        assert_eq!(new(&[host("localhost"), host("localhost")]), Err(400));
        for wrong in ["", "a b", "käse.example", "somebody@localhost", "http://localhost"] {
            assert_eq!(new(&[host(wrong)]), Err(400), "{wrong}");
        }
        assert_eq!(new(&[("host", b"\xff")]), Err(400));
        let absolute = "http://elsewhere.example/requests";
        let named = checked(Version::HTTP_11, absolute, &[host("localhost")]);
        assert_eq!(named, Ok("elsewhere.example".to_owned()));
    }

    #[test]
    fn what_nobody_here_can_do_is_refused() {
        let with = |name: &'static str, value: &'static str| {
            let headers: [(&str, &[u8]); 2] = [("host", b"localhost"), (name, value.as_bytes())];
            checked(Version::HTTP_11, "/requests", &headers).err()
        };
        assert_eq!(with("transfer-encoding", "Chunked"), None);
        assert_eq!(with("transfer-encoding", "gzip, chunked"), Some(501));
        assert_eq!(with("expect", "100-Continue"), None);
        assert_eq!(with("expect", "a-miracle"), Some(417));
    }
}
