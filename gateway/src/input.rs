//! The bodies and queries of clients, read strictly: unknown fields are refused, because a client should learn of a
//! misspelt field.

use std::str::FromStr;
use std::time::Duration;

use axum::body::HttpBody as _;
use axum::extract::rejection::PathRejection;
use axum::extract::{FromRequest, Path, Query, Request};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Uri, header};
use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer};
use tokio::time::timeout;
use utoipa::ToSchema;

use crate::problem::{Problem, ProblemKind};

/// The largest body that is read, in bytes.
const MAX_BODY: usize = 4 * 1024;

/// The greatest length of a page.
const MAX_LIMIT: usize = 1000;

/// The time limit for the arrival of a body.
const BODY_TIME: Duration = Duration::from_secs(5);

/// The body of a request: JSON with its content type, or nothing.
pub(crate) async fn read_body(request: Request) -> Result<Bytes, Problem> {
    let (head, body) = request.into_parts();
    let too_large = || {
        ProblemKind::TooLarge.because(format_args!("the body may have at most {MAX_BODY} bytes"))
    };
    // Checks the announced length first, so that the client need not send the body.
    if body.size_hint().lower() > MAX_BODY as u64 {
        return Err(too_large());
    }
    let body = timeout(BODY_TIME, Limited::new(body, MAX_BODY).collect()).await;
    let body = body.map_err(|_| {
        ProblemKind::Slow
            .because(format_args!("the body has to arrive within {} s", BODY_TIME.as_secs()))
    })?;
    let body = body.map_err(|error| {
        if error.is::<LengthLimitError>() {
            too_large()
        } else {
            ProblemKind::Invalid.because("the body is incomplete")
        }
    })?;
    let body = body.to_bytes();
    if !body.is_empty() {
        check_media_type(&head.headers)?;
    }
    Ok(body)
}

/// A body that has to be JSON. A form of another site cannot send JSON.
pub(crate) struct Json<T>(pub(crate) T);

impl<S: Sync, T: DeserializeOwned> FromRequest<S> for Json<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, _state: &S) -> Result<Self, Problem> {
        check_media_type(request.headers())?;
        object(&read_body(request).await?).map(Self)
    }
}

/// A JSON object.
pub(crate) fn object<T: DeserializeOwned>(body: &[u8]) -> Result<T, Problem> {
    if !body.trim_ascii_start().starts_with(b"{") {
        return Err(ProblemKind::Invalid.because("the body is not a JSON object"));
    }
    serde_json::from_slice(body).map_err(|error| ProblemKind::Invalid.because(error))
}

/// An object without fields.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Empty {}

/// Checks that a body is JSON in UTF-8, and not compressed.
fn check_media_type(headers: &HeaderMap) -> Result<(), Problem> {
    let mut encodings = headers.get_all(header::CONTENT_ENCODING).iter();
    if encodings.any(|name| !name.as_bytes().eq_ignore_ascii_case(b"identity")) {
        return Err(ProblemKind::MediaType.because("the body must not have a Content-Encoding"));
    }
    if !is_json(headers) {
        let detail = "the Content-Type of the body has to be application/json, in UTF-8";
        return Err(ProblemKind::MediaType.because(detail));
    }
    Ok(())
}

/// Whether the content type is JSON in UTF-8.
fn is_json(headers: &HeaderMap) -> bool {
    let Ok(Some(value)) = one(headers, &header::CONTENT_TYPE) else { return false };
    let mut parts = value.split(|byte| *byte == b';').map(<[u8]>::trim_ascii);
    let essence = parts.next().unwrap_or_default();
    let is_utf8 = |parameter: &[u8]| {
        let (name, charset) = parameter.split_at_checked(b"charset=".len()).unwrap_or_default();
        let charset = charset.strip_prefix(b"\"").unwrap_or(charset);
        let charset = charset.strip_suffix(b"\"").unwrap_or(charset);
        !name.eq_ignore_ascii_case(b"charset=") || charset.eq_ignore_ascii_case(b"utf-8")
    };
    essence.eq_ignore_ascii_case(b"application/json") && parts.all(is_utf8)
}

/// The value of a header that may occur once.
pub(crate) fn one<'a>(
    headers: &'a HeaderMap,
    name: &HeaderName,
) -> Result<Option<&'a [u8]>, Problem> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (value, None) => Ok(value.map(HeaderValue::as_bytes)),
        _ => Err(ProblemKind::Invalid.because(format_args!("there is more than one {name}"))),
    }
}

/// The parameters in a path. An escape that is not UTF-8 is an error.
pub(crate) fn path<T>(path: Result<Path<T>, PathRejection>) -> Result<T, Problem> {
    let Path(parameters) = path.map_err(|error| ProblemKind::Invalid.because(error.body_text()))?;
    Ok(parameters)
}

/// The parameters of a query. Unknown and repeated parameters are errors.
pub(crate) fn query<Q: DeserializeOwned>(uri: &Uri) -> Result<Q, Problem> {
    match Query::try_from_uri(uri) {
        Ok(Query(query)) => Ok(query),
        Err(rejection) => Err(ProblemKind::Invalid.because(rejection.body_text())),
    }
}

/// No parameters.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NoQuery {}

/// A word of a fixed set. The error for any other names the set.
pub(crate) fn named<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr<Err: std::fmt::Display>,
{
    String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
}

/// As [`named`], for an optional word.
pub(crate) fn named_if<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr<Err: std::fmt::Display>,
{
    named(deserializer).map(Some)
}

/// The length of a page.
pub(crate) fn limit_within_bounds<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<usize, D::Error> {
    let limit = whole_number(&String::deserialize(deserializer)?);
    let limit = limit.and_then(|limit| usize::try_from(limit).ok());
    limit
        .filter(|limit| (1..=MAX_LIMIT).contains(limit))
        .ok_or_else(|| D::Error::custom(format_args!("write a whole number from 1 to {MAX_LIMIT}")))
}

/// A whole number in plain digits, without signs and leading zeros.
pub(crate) fn whole_number(text: &str) -> Option<u64> {
    let plain = text == "0" || !text.starts_with('0');
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    if plain && digits { text.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_may_have_parameters_and_is_utf_8() {
        for (name, is_it) in [
            ("application/json", true),
            ("Application/JSON; charset=utf-8", true),
            ("application/json;charset=\"UTF-8\"; a=b", true),
            ("application/json; charset=iso-8859-1", false),
            ("application/json; charset=", false),
            ("application/jsonp", false),
            ("text/plain", false),
        ] {
            let headers =
                HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static(name))]);
            assert_eq!(is_json(&headers), is_it, "{name}");
        }
        assert!(!is_json(&HeaderMap::new()));
    }
}
