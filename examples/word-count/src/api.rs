//! The HTTP API, and the page.

use std::collections::HashMap;
use std::fmt::Display;
use std::time::Duration;

use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{self, DefaultBodyLimit, FromRequest, FromRequestParts, Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use axum::{Json, Router};
use futures_util::{StreamExt, TryStreamExt, stream};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use workqueue::batch::last_under_each;
use workqueue::{Job, JobId, Priority, PublishError, Recurrence, Running, Span, Trace, chain};
use workqueue::{dead_letters, schedules};

use crate::{Recount, Store, Task, check};

/// The most pages of a batch, and the most bytes of its body.
const MOST_PAGES: usize = 10_000;
const MOST_BYTES: usize = 4 << 20;

/// How many pages of a batch are on their way to the queue at a time: the other places are for the form.
const AT_A_TIME: usize = 64;

/// How long the broker may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// How many jobs the list has.
const LATEST: u32 = 50;

/// The page loads nothing from elsewhere, and runs no script that stands in it.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; base-uri 'none'; \
                      form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'";

#[derive(Clone)]
struct Front {
    store: Store,
    running: Running,
}

/// The routes of a front that runs.
pub fn router(store: Store, running: Running) -> Router {
    let file = |kind, body: &'static str| {
        let headers = [(header::CONTENT_TYPE, kind), (header::CONTENT_SECURITY_POLICY, POLICY)];
        get(async move || (headers, body))
    };
    Router::new()
        .route("/", file("text/html; charset=utf-8", include_str!("../page/page.html")))
        .route("/page.js", file("text/javascript; charset=utf-8", include_str!("../page/page.js")))
        .route("/page.css", file("text/css; charset=utf-8", include_str!("../page/page.css")))
        .route("/word-counts", post(count).get(list))
        .route("/word-counts/batch", post(count_all).layer(DefaultBodyLimit::max(MOST_BYTES)))
        .route("/word-counts/{id}", get(show))
        .route("/tasks", post(submit))
        .route("/tasks/{id}", get(show))
        .route("/words", get(words))
        .route("/schedules", get(scheduled))
        .route("/schedules/{name}", put(schedule).delete(unschedule))
        .with_state(Front { store, running })
}

/// A status, and a sentence that says what to do (RFC 9457).
struct Problem(StatusCode, String);

impl Problem {
    fn invalid(detail: impl Display) -> Self {
        Self(StatusCode::UNPROCESSABLE_ENTITY, detail.to_string())
    }

    fn missing(what: &str) -> Self {
        Self(StatusCode::NOT_FOUND, format!("there is no such {what}"))
    }

    fn later(detail: impl Display) -> Self {
        Self(StatusCode::SERVICE_UNAVAILABLE, format!("{detail}; try again"))
    }
}

impl From<JsonRejection> for Problem {
    fn from(rejection: JsonRejection) -> Self {
        Self(rejection.status(), rejection.body_text())
    }
}

impl From<QueryRejection> for Problem {
    fn from(rejection: QueryRejection) -> Self {
        Self(rejection.status(), rejection.body_text())
    }
}

impl From<PublishError> for Problem {
    fn from(error: PublishError) -> Self {
        let why = chain(&error);
        if error.is_permanent() { Self::invalid(why) } else { Self::later(why) }
    }
}

impl From<sqlx::Error> for Problem {
    fn from(error: sqlx::Error) -> Self {
        Self::later(format_args!("the database fails: {error}"))
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let Self(status, detail) = self;
        let (title, code) = (status.canonical_reason(), status.as_u16());
        let body =
            json!({ "type": "about:blank", "title": title, "status": code, "detail": detail });
        let kind = [(header::CONTENT_TYPE, "application/problem+json")];
        (status, kind, body.to_string()).into_response()
    }
}

/// A body in JSON, whose errors are problems.
#[derive(FromRequest)]
#[from_request(via(Json), rejection(Problem))]
struct Body<T>(T);

/// A query, whose errors are problems.
#[derive(FromRequestParts)]
#[from_request(via(extract::Query), rejection(Problem))]
struct Query<T>(T);

/// A page, and how often to count it again where that is asked for.
#[derive(Deserialize)]
struct Page {
    url: String,
    every: Option<String>,
}

#[derive(Deserialize)]
struct Pages {
    urls: Vec<String>,
}

#[derive(Deserialize)]
struct Top {
    top: Option<u32>,
}

/// The task that counts the words of this page.
fn word_count(url: &str, priority: Priority) -> Result<Task, Problem> {
    let url = check(url).map_err(Problem::invalid)?;
    let input = json!({ "url": url.as_str() });
    Ok(Task { id: JobId::new(), task: "word_count".to_owned(), input, priority })
}

impl Front {
    /// Submits a task, and says where to look for it.
    async fn accept(
        &self,
        task: Task,
        headers: &HeaderMap,
        route: &'static str,
    ) -> Result<Response, Problem> {
        let trace = Trace::of_request(headers);
        let span = Span::server(route, &trace);
        let trace = span.trace(&trace);
        // It does not wait for room.
        let at_once = CancellationToken::new();
        at_once.cancel();
        let publishing = self.running.producer.publish(&task, task.id, &trace, Some(&at_once));
        let published = timeout(PATIENCE, publishing).await;
        published.map_err(|_| Problem::later("no answer from the broker, which may have it"))??;
        let (id, route) = (task.id, route.trim_start_matches("POST /"));
        let location = format!("{route}/{id}");
        self.store.note(&[task]).await?;
        let body = Json(json!({ "id": id, "location": location }));
        Ok((StatusCode::ACCEPTED, [(header::LOCATION, location)], body).into_response())
    }

    /// Adds to jobs how far they are. The dead letters tell what has failed; while the broker is away, that waits.
    async fn shown(&self, jobs: Vec<String>) -> Vec<Value> {
        let subject = |job: &Value| {
            dead_letters::subject(Task::QUEUE.stream, job["id"].as_str().unwrap_or_default())
        };
        let json = |job: String| serde_json::from_str(&job).unwrap_or_default();
        let mut jobs: Vec<Value> = jobs.into_iter().map(json).collect();
        let open = jobs.iter().filter(|it| it["output"].is_null());
        let is_connected = self.running.connection.is_connected();
        let open: Vec<_> = open.filter(|_| is_connected).map(subject).collect();
        let nats = self.running.connection.context();
        let asking = timeout(PATIENCE, last_under_each(nats, dead_letters::STREAM, &open)).await;
        let (letters, _) = asking.ok().and_then(Result::ok).unwrap_or_default();
        let reasons: HashMap<_, _> =
            letters.iter().map(|it| (&it.subject, dead_letters::reason(&it.headers))).collect();
        for job in &mut jobs {
            let reason = reasons.get(&subject(job));
            let is_done = !job["output"].is_null();
            let unfinished = if reason.is_some() { "failed" } else { "waiting" };
            job["state"] = if is_done { "done" } else { unfinished }.into();
            job["reason"] = json!(reason);
        }
        jobs
    }
}

/// Counts one page, for a person who waits: before all batches.
async fn count(
    front: State<Front>,
    headers: HeaderMap,
    Body(Page { url, .. }): Body<Page>,
) -> Result<Response, Problem> {
    front.accept(word_count(&url, Priority::High)?, &headers, "POST /word-counts").await
}

/// Any task: only a worker knows which there are.
async fn submit(
    front: State<Front>,
    headers: HeaderMap,
    Body(Recount { task, input }): Body<Recount>,
) -> Result<Response, Problem> {
    let task = Task { id: JobId::new(), task, input, priority: Priority::High };
    front.accept(task, &headers, "POST /tasks").await
}

/// Counts many pages, after all others. It waits while the queue is full.
async fn count_all(
    front: State<Front>,
    Body(Pages { urls }): Body<Pages>,
) -> Result<Response, Problem> {
    if urls.len() > MOST_PAGES {
        return Err(Problem::invalid(format_args!("a batch has at most {MOST_PAGES} pages")));
    }
    let (mut tasks, trace) = (Vec::new(), Trace::default());
    for (place, url) in urls.iter().enumerate() {
        let at = |Problem(status, detail)| Problem(status, format!("urls[{place}]: {detail}"));
        tasks.push(word_count(url, Priority::Low).map_err(at)?);
    }
    let producer = &front.running.producer;
    let publishing: Vec<_> =
        tasks.iter().map(|task| producer.publish(task, task.id, &trace, None)).collect();
    stream::iter(publishing).buffer_unordered(AT_A_TIME).try_for_each(async |_| Ok(())).await?;
    front.store.note(&tasks).await?;
    let ids: Vec<_> = tasks.iter().map(|task| task.id).collect();
    Ok((StatusCode::ACCEPTED, Json(json!({ "ids": ids }))).into_response())
}

/// The jobs that were made last.
async fn list(front: State<Front>) -> Result<Json<Value>, Problem> {
    let (jobs, done) = front.store.counts().await?;
    let latest = front.shown(front.store.latest(LATEST).await?).await;
    Ok(Json(json!({ "jobs": jobs, "done": done, "latest": latest })))
}

/// One job, with so many of its words at most.
async fn show(
    front: State<Front>,
    Path(id): Path<String>,
    Query(Top { top }): Query<Top>,
) -> Result<Json<Value>, Problem> {
    let missing = || Problem::missing("job");
    let job = front.store.job(id.parse().map_err(|_| missing())?).await?.ok_or_else(missing)?;
    let mut job = front.shown(vec![job]).await.remove(0);
    let words = job.pointer_mut("/output/words").and_then(Value::as_array_mut);
    if let (Some(top), Some(words)) = (top, words) {
        words.truncate(top as usize);
    }
    Ok(Json(job))
}

/// The most frequent words on all pages together.
async fn words(front: State<Front>, Query(Top { top }): Query<Top>) -> Result<Response, Problem> {
    Ok(Json(front.store.words(top.unwrap_or(10)).await?).into_response())
}

/// Counts a page again and again, once an hour unless it says otherwise.
async fn schedule(
    front: State<Front>,
    Path(name): Path<String>,
    Body(Page { url, every }): Body<Page>,
) -> Result<StatusCode, Problem> {
    let every = workqueue::duration(every.as_deref().unwrap_or("1h")).map_err(Problem::invalid)?;
    let Task { task, input, .. } = word_count(&url, Priority::Normal)?;
    let recount = Recount { task, input };
    front.running.producer.schedule(&name, &Recurrence::Every(every), &recount).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn unschedule(front: State<Front>, Path(name): Path<String>) -> Result<StatusCode, Problem> {
    let removed = front.running.producer.unschedule::<Recount>(&name).await;
    let is_there = removed.map_err(|error| Problem::later(chain(&error)))?;
    if is_there { Ok(StatusCode::NO_CONTENT) } else { Err(Problem::missing("schedule")) }
}

async fn scheduled(front: State<Front>) -> Result<Json<Value>, Problem> {
    let listed = schedules::list::<Recount>(&front.running.connection).await;
    let listed = listed.map_err(|error| Problem::later(chain(&error)))?.into_iter();
    let shown = |it: schedules::Schedule<Recount>| json!({ "name": it.name, "recurrence": it.recurrence.to_string(), "job": it.job });
    Ok(Json(listed.map(shown).collect()))
}
