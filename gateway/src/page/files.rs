//! The files of the page, which are part of the program.

use axum::Router;
use axum::http::HeaderMap;
use axum::routing::get;

use crate::etag;

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
    "/lessons.css" STYLE "lessons.css"
    "/icon.svg" IMAGE "icon.svg"
    "/main.js" SCRIPT "main.js"
    "/address.js" SCRIPT "address.js"
    "/confirm.js" SCRIPT "confirm.js"
    "/storage.js" SCRIPT "storage.js"
    "/keys.js" SCRIPT "keys.js"
    "/lab.js" SCRIPT "lab.js"
    "/lessons.js" SCRIPT "lessons.js"
    "/lesson_text.js" SCRIPT "lesson_text.js"
    "/requests.js" SCRIPT "requests.js"
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
        router.route(
            path,
            get(async move |headers: HeaderMap| etag::answer(&headers, kind, *content)),
        )
    })
}

/// Whether this is the path of a file.
pub(crate) fn is_file(path: &str) -> bool {
    FILES.iter().any(|(of, ..)| *of == path)
}

#[cfg(test)]
mod tests {
    use super::*;

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
