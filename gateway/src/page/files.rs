//! The files of the page, which are part of the program.

use std::hash::{DefaultHasher, Hash, Hasher};

use axum::Router;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

/// A file of the page: its path, its type, and its content.
type File = (&'static str, &'static str, &'static str);

const HTML: &str = "text/html; charset=utf-8";
const STYLE: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const IMAGE: &str = "image/svg+xml";

macro_rules! files {
    ($($path:literal $kind:ident $file:literal)*) => {
        &[$(($path, $kind, include_str!(concat!("../../page/", $file)))),*]
    };
}

const FILES: &[File] = files! {
    "/" HTML "index.html"
    "/style.css" STYLE "style.css"
    "/flow.css" STYLE "flow.css"
    "/icon.svg" IMAGE "icon.svg"
    "/main.js" SCRIPT "main.js"
    "/address.js" SCRIPT "address.js"
    "/keys.js" SCRIPT "keys.js"
    "/dom.js" SCRIPT "dom.js"
    "/flow.js" SCRIPT "flow.js"
    "/axis.js" SCRIPT "axis.js"
    "/numbers.js" SCRIPT "numbers.js"
    "/last_strings.js" SCRIPT "last_strings.js"
    "/history.js" SCRIPT "history.js"
    "/dead_letters.js" SCRIPT "dead_letters.js"
    "/event_log.js" SCRIPT "event_log.js"
};

/// The routes of the files.
pub(super) fn routes<S: Clone + Send + Sync + 'static>() -> Router<S> {
    FILES.iter().fold(Router::new(), |router, (path, kind, content)| {
        router.route(path, get(async move |headers| file(kind, content, &headers)))
    })
}

/// Whether this is the path of a file.
pub(crate) fn is_file(path: &str) -> bool {
    FILES.iter().any(|(of, ..)| *of == path)
}

fn file(kind: &'static str, content: &'static str, headers: &HeaderMap) -> Response {
    let tag = tag(content);
    // Validated each time, so that a browser never shows the page of another version.
    let known = [(header::ETAG, tag.as_str()), (header::CACHE_CONTROL, "no-cache")];
    let has = headers.get(header::IF_NONE_MATCH).and_then(|tags| tags.to_str().ok());
    if has.is_some_and(|tags| tags.split(',').any(|has| has.trim() == tag)) {
        return (StatusCode::NOT_MODIFIED, known).into_response();
    }
    (known, [(header::CONTENT_TYPE, kind)], content).into_response()
}

/// The entity tag of a version of a file.
fn tag(content: &str) -> String {
    let mut hasher = DefaultHasher::new();
    content.hash(&mut hasher);
    format!("\"{:016x}\"", hasher.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unchanged_file_is_not_sent_again() {
        for (path, kind, content) in FILES {
            assert!(is_file(path));
            let answer = file(kind, content, &HeaderMap::new());
            assert_eq!(answer.status(), StatusCode::OK);
            let mut headers = HeaderMap::new();
            headers.insert(header::IF_NONE_MATCH, answer.headers()[header::ETAG].clone());
            assert_eq!(file(kind, content, &headers).status(), StatusCode::NOT_MODIFIED);
        }
    }

    #[test]
    fn scripts_and_styles_are_files_and_text_stays_text() {
        for (path, _, content) in FILES {
            for forbidden in
                ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("]
            {
                assert!(!content.contains(forbidden), "{path} has {forbidden}");
            }
        }
        let (_, _, page) = FILES[0];
        for forbidden in
            ["style=", " onclick", " onload", "<style", "http://", "https://", "javascript:"]
        {
            assert!(!page.contains(forbidden), "the page has {forbidden}");
        }
    }
}
