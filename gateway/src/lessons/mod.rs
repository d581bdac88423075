//! The course: its lessons as the page shows them, and the checks of their steps over the flow.
//!
//! | path | content |
//! | --- | --- |
//! | `/api/lessons` | the numbers and titles of the lessons |
//! | `/api/lessons/{number}` | a lesson, whole ([`lesson`]) |
//! | `/api/lessons/{number}/steps/{step}` | whether the [`check`] of a step holds, as server-sent events (`follow`) |
//! | `/api/lessons/glossary` | the terms |
//! | `/api/lessons/{file}.svg` | a picture of a lesson |
//!
//! The program contains the lessons, which are files in `lessons/`.

pub mod check;
mod follow;
mod glossary;
pub mod lesson;
mod markdown;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use axum::Router;
use axum::extract::Path;
use axum::extract::rejection::PathRejection;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde_json::json;

use crate::input::path;
use crate::problem::{Problem, ProblemKind};
use crate::requests::json as answer;
use crate::state::Gateway;
use glossary::Term;
use lesson::Lesson;

macro_rules! lessons {
    ($($file:literal)*) => { [$(include_str!(concat!("../../../lessons/", $file, ".md"))),*] };
}

const FILES: [&str; 10] = lessons! {
    "00-coupled" "01-queue" "02-fire-and-forget" "03-scale" "04-kill" "05-poison" "06-back-pressure" "07-priorities"
    "08-change" "09-limits"
};

macro_rules! pictures {
    ($($file:literal)*) => { [$(($file, include_str!(concat!("../../../lessons/", $file)))),*] };
}

/// The pictures of the lessons, by their files.
const PICTURES: [(&str, &str); 6] = pictures! {
    "coupled.svg" "queue.svg" "redelivery.svg" "dead-letter.svg" "back-pressure.svg" "outbox.svg"
};

static LESSONS: LazyLock<Vec<Lesson>> = LazyLock::new(|| {
    FILES.iter().map(|file| Lesson::parse(file).expect("a test reads each of them")).collect()
});

static TERMS: LazyLock<BTreeMap<String, Term>> =
    LazyLock::new(|| glossary::terms(include_str!("../../../docs/glossary.md")));

/// All lessons, in their order.
#[must_use]
pub fn lessons() -> &'static [Lesson] {
    &LESSONS
}

/// The lesson with this number, if there is one.
#[must_use]
pub fn numbered(number: usize) -> Option<&'static Lesson> {
    LESSONS.iter().find(|lesson| lesson.number == number)
}

/// The routes of the lessons.
pub(crate) fn routes() -> Router<Arc<Gateway>> {
    Router::new()
        .route("/api/lessons", get(list))
        .route("/api/lessons/glossary", get(async || answer(&json!({ "terms": *TERMS }))))
        .route("/api/lessons/{number}", get(show))
        .route("/api/lessons/{number}/steps/{step}", get(follow::follow))
}

async fn list() -> Response {
    let titles = LESSONS.iter().map(|it| json!({ "number": it.number, "title": it.title }));
    answer(&json!({ "lessons": titles.collect::<Vec<_>>() }))
}

async fn show(number: Result<Path<String>, PathRejection>) -> Result<Response, Problem> {
    let number = path(number)?;
    if let Some((_, picture)) = PICTURES.iter().find(|(name, _)| *name == number) {
        return Ok(([(header::CONTENT_TYPE, "image/svg+xml")], *picture).into_response());
    }
    let lesson = number.parse().ok().and_then(numbered);
    lesson.map(answer).ok_or_else(no_lesson)
}

fn no_lesson() -> Problem {
    ProblemKind::NoRoute.because(format!(
        "the lessons are numbered from 0 to {}, their steps from 1",
        LESSONS.len() - 1
    ))
}
