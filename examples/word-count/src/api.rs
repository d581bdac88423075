//! The HTTP API, and the page.

use std::fmt::Display;
use std::time::Duration;

use anyhow::{Context, Error};
use axum::body::to_bytes;
use axum::extract::{DefaultBodyLimit, Path, Query, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::map_response;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use axum::{Json, Router};
use futures_util::{StreamExt, TryStreamExt, stream};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::timeout;
use workqueue::batch::last_under_each;
use workqueue::schedules::{self, Schedule};
use workqueue::{JobId, Priority, PublishError, Recurrence, Running, Span, Trace, dead_letters};

use crate::{InvalidUrl, Recount, Store, Task, check};

/// The most pages of a batch, and the most bytes of its body.
const MOST_PAGES: usize = 10_000;
const MOST_BYTES: usize = 4 << 20;

/// The most pages of a batch that are published at a time, so that the form's publishes do not wait behind a batch.
const AT_A_TIME: usize = 64;

/// The time limit for the broker to answer, and for the queue to have room.
const PATIENCE: Duration = Duration::from_secs(5);

/// The error once that limit is reached.
const LATE: &str = "the broker is away, or its queue full, and may yet take the job";

/// The number of jobs in the list.
const LATEST: u32 = 50;

/// The page loads nothing from other sites, and runs no inline script.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; base-uri 'none'; \
                      form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'";

#[derive(Clone)]
struct Front {
    store: Store,
    running: Running,
}

/// The routes of the running front.
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
        .layer(map_response(problem))
}

/// An answer, or a problem.
type Answer<T> = Result<T, Problem>;

/// A status, and a sentence that says what to do.
struct Problem(StatusCode, String);

impl Problem {
    fn invalid(detail: impl Display) -> Self {
        Self(StatusCode::UNPROCESSABLE_ENTITY, detail.to_string())
    }

    fn missing(what: &str) -> Self {
        Self(StatusCode::NOT_FOUND, format!("there is no such {what}"))
    }
}

/// An error of `?` comes from the broker or the database. A retry may succeed, unless the error is permanent.
impl<E: Into<Error>> From<E> for Problem {
    fn from(error: E) -> Self {
        let error = error.into();
        if error.downcast_ref().is_some_and(PublishError::is_permanent) {
            Self::invalid(format_args!("{error:#}"))
        } else {
            Self(StatusCode::SERVICE_UNAVAILABLE, format!("{error:#}; try again"))
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        (self.0, self.1).into_response()
    }
}

/// Makes a problem (RFC 9457) of each error, ours and axum's.
async fn problem(response: Response) -> Response {
    let status = response.status();
    if status.as_u16() < 400 {
        return response;
    }
    let (mut head, body) = response.into_parts();
    let detail = to_bytes(body, MOST_BYTES).await.unwrap_or_default();
    let body = json!({
        "type": "about:blank",
        "title": status.canonical_reason(),
        "status": status.as_u16(),
        "detail": String::from_utf8_lossy(&detail),
    });
    let kind = HeaderValue::from_static("application/problem+json");
    head.headers.insert(header::CONTENT_TYPE, kind);
    Response::from_parts(head, body.to_string().into())
}

/// A page, and the interval of its recounts, if there are any.
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
fn word_count(url: &str, priority: Priority) -> Result<Task, InvalidUrl> {
    let input = json!({ "url": check(url)?.as_str() });
    Ok(Task { id: JobId::new(), task: "word_count".to_owned(), input, priority })
}

impl Front {
    /// Submits a task, and returns its address.
    async fn accept(
        &self,
        task: Task,
        headers: &HeaderMap,
        route: &'static str,
    ) -> Answer<Response> {
        let trace = Trace::of_request(headers);
        let span = Span::server(route, &trace);
        let trace = span.trace(&trace);
        let publishing = self.running.producer.publish(&task, task.id, &trace, None);
        timeout(PATIENCE, publishing).await.context(LATE)??;
        let location = format!("{}/{}", route.trim_start_matches("POST /"), task.id);
        let body = Json(json!({ "id": task.id, "location": location }));
        self.store.note(&[task]).await?;
        Ok((StatusCode::ACCEPTED, [(header::LOCATION, location)], body).into_response())
    }

    /// The jobs, with the reasons of those that are dead letters. Without the reasons while the broker is away.
    async fn shown(&self, jobs: &[String]) -> Answer<Vec<Value>> {
        let jobs = jobs.iter().map(|job| serde_json::from_str(job));
        let mut jobs = jobs.collect::<Result<Vec<Value>, _>>()?;
        // From any queue, because the result of a task may be a dead letter as well.
        let subject = |job: &Value| Some(dead_letters::subject("*", job["id"].as_str()?));
        let waiting = jobs.iter().filter(|job| job["state"] == "waiting");
        let subjects: Vec<_> = waiting.filter_map(subject).collect();
        let nats = &self.running.connection;
        let asking = last_under_each(nats.context(), dead_letters::STREAM, &subjects);
        if nats.is_connected()
            && let Ok(Ok((letters, _))) = timeout(PATIENCE, asking).await
        {
            for letter in letters {
                let id = dead_letters::key(&letter.subject);
                if let Some(job) = jobs.iter_mut().find(|job| job["id"].as_str() == id) {
                    job["state"] = "failed".into();
                    job["reason"] = dead_letters::reason(&letter.headers).into();
                }
            }
        }
        Ok(jobs)
    }
}

/// Counts one page, with high priority, because a person waits for it.
async fn count(
    front: State<Front>,
    headers: HeaderMap,
    Json(Page { url, .. }): Json<Page>,
) -> Answer<Response> {
    let task = word_count(&url, Priority::High).map_err(Problem::invalid)?;
    front.accept(task, &headers, "POST /word-counts").await
}

/// Submits any task: only a worker knows the names of the tasks.
async fn submit(
    front: State<Front>,
    headers: HeaderMap,
    Json(Recount { task, input }): Json<Recount>,
) -> Answer<Response> {
    let task = Task { id: JobId::new(), task, input, priority: Priority::High };
    front.accept(task, &headers, "POST /tasks").await
}

/// Counts many pages, with low priority. It waits while the queue is full.
async fn count_all(front: State<Front>, Json(Pages { urls }): Json<Pages>) -> Answer<Response> {
    if urls.len() > MOST_PAGES {
        return Err(Problem::invalid(format_args!("a batch has at most {MOST_PAGES} pages")));
    }
    let mut tasks = Vec::new();
    for (place, url) in urls.iter().enumerate() {
        let at = |error| Problem::invalid(format_args!("urls[{place}]: {error}"));
        tasks.push(word_count(url, Priority::Low).map_err(at)?);
    }
    let submitting: Vec<_> = tasks.iter().map(|task| front.running.producer.submit(task)).collect();
    let ids: Vec<JobId> = stream::iter(submitting).buffered(AT_A_TIME).try_collect().await?;
    front.store.note(&tasks).await?;
    Ok((StatusCode::ACCEPTED, Json(json!({ "ids": ids }))).into_response())
}

/// The last jobs, with the numbers of all jobs and of those that are done.
async fn list(front: State<Front>) -> Answer<Json<Value>> {
    let (jobs, done) = front.store.counts().await?;
    let latest = front.shown(&front.store.latest(LATEST).await?).await?;
    Ok(Json(json!({ "jobs": jobs, "done": done, "latest": latest })))
}

/// One job, with at most `top` of its words.
async fn show(
    front: State<Front>,
    Path(id): Path<String>,
    Query(Top { top }): Query<Top>,
) -> Answer<Json<Value>> {
    let job = front.store.job(&id).await?.ok_or_else(|| Problem::missing("job"))?;
    let mut job = front.shown(&[job]).await?.remove(0);
    let words = job.pointer_mut("/output/words").and_then(Value::as_array_mut);
    if let (Some(top), Some(words)) = (top, words) {
        words.truncate(top as usize);
    }
    Ok(Json(job))
}

/// The most frequent words of the last 1,000 counted pages together.
async fn words(front: State<Front>, Query(Top { top }): Query<Top>) -> Answer<Response> {
    Ok(Json(front.store.words(top.unwrap_or(10)).await?).into_response())
}

/// Sets a schedule that counts a page each hour, or at the given interval.
async fn schedule(
    front: State<Front>,
    Path(name): Path<String>,
    Json(Page { url, every }): Json<Page>,
) -> Answer<StatusCode> {
    let every = workqueue::duration(every.as_deref().unwrap_or("1h")).map_err(Problem::invalid)?;
    let Task { task, input, .. } = word_count(&url, Priority::Normal).map_err(Problem::invalid)?;
    let recount = Recount { task, input };
    let recurrence = Recurrence::Every(every);
    let setting = front.running.producer.schedule(&name, &recurrence, &recount);
    timeout(PATIENCE, setting).await.context(LATE)??;
    Ok(StatusCode::NO_CONTENT)
}

async fn unschedule(front: State<Front>, Path(name): Path<String>) -> Answer<StatusCode> {
    let is_there = front.running.producer.unschedule::<Recount>(&name).await?;
    if is_there { Ok(StatusCode::NO_CONTENT) } else { Err(Problem::missing("schedule")) }
}

async fn scheduled(front: State<Front>) -> Answer<Json<Value>> {
    let listed = schedules::list::<Recount>(&front.running.connection).await?.into_iter();
    let shown = |it: Schedule<Recount>| {
        let recurrence = it.recurrence.to_string();
        json!({ "name": it.name, "recurrence": recurrence, "job": it.job })
    };
    Ok(Json(listed.map(shown).collect()))
}
