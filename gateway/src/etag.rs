//! Entity tags: a client that already has the current content gets 304 instead.

use std::hash::{DefaultHasher, Hash, Hasher};

use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

/// The entity tag of a representation, without its quotes.
pub(crate) fn tag(content: &[u8]) -> String {
    let mut hasher = DefaultHasher::new();
    content.hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

/// This content with its tag, or 304 if the client has it already. A cache has to ask each time.
pub(crate) fn answer(
    asked: &HeaderMap,
    media_type: &'static str,
    content: impl AsRef<[u8]> + IntoResponse,
) -> Response {
    let tag = format!("\"{}\"", tag(content.as_ref()));
    let known = [(header::ETAG, tag.as_str()), (header::CACHE_CONTROL, "no-cache")];
    if has(asked, &tag) {
        return (StatusCode::NOT_MODIFIED, known).into_response();
    }
    (known, [(header::CONTENT_TYPE, media_type)], content).into_response()
}

/// Whether the client has the content with this tag. A weak tag counts as well.
fn has(asked: &HeaderMap, tag: &str) -> bool {
    let tags = asked.get_all(header::IF_NONE_MATCH).iter().map(HeaderValue::to_str);
    let mut tags = tags.flatten().flat_map(|tags| tags.split(',')).map(str::trim);
    tags.any(|has| has == "*" || has.strip_prefix("W/").unwrap_or(has) == tag)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn client_that_has_the_content_gets_304() {
        let status = |tags: &[&str], content: &'static str| {
            let mut asked = HeaderMap::new();
            for tags in tags {
                asked.append(header::IF_NONE_MATCH, tags.parse().unwrap());
            }
            answer(&asked, "text/plain", content).status()
        };
        let tag = format!("\"{}\"", tag(b"content"));
        let weak = format!("W/{tag}");
        assert_eq!(status(&[], "content"), StatusCode::OK);
        assert_eq!(status(&[&tag], "other"), StatusCode::OK);
        for tags in
            [&[tag.as_str()] as &[&str], &["\"a\"", &weak], &["\"a\" , \"b\"", &tag], &["*"]]
        {
            assert_eq!(status(tags, "content"), StatusCode::NOT_MODIFIED, "{tags:?}");
        }
    }
}
