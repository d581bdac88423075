//! The API of schedules, which make recurring requests.

mod view;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use contract::queues::DueRequest;
use tokio::time::timeout;
use tracing::error;
use workqueue::{PublishError, Schedule, ScheduleOutcome, chain, schedules};

use crate::input::{NoQuery, query, read_body};
use crate::problem::{Problem, ProblemKind};
use crate::requests::json;
use crate::requests::submit::Submissions;
use crate::state::Gateway;
use view::{NewSchedule, ScheduleList, ScheduleView};

/// The time limit for an answer of the broker.
const DEADLINE: Duration = Duration::from_millis(800);

/// The routes of schedules.
pub(crate) fn routes() -> Router<Arc<Gateway>> {
    Router::new()
        .route("/schedules", get(list))
        .route("/schedules/{name}", get(show).put(set).delete(remove))
}

/// List all schedules
#[utoipa::path(
    get,
    path = "/schedules",
    operation_id = "schedules",
    tag = "schedules",
    responses(
        (status = 200, description = "All schedules", body = ScheduleList,
         example = json!({ "schedules": [{
             "name": "nightly", "cron": "0 30 3 * * *", "time_zone": "Europe/Berlin",
             "count": 100, "length": 32, "priority": "low"
         }] })),
    )
)]
pub(crate) async fn list(
    State(gateway): State<Arc<Gateway>>,
    uri: Uri,
) -> Result<Response, Problem> {
    let NoQuery {} = query(&uri)?;
    let connection = gateway.connection()?;
    let found = timeout(DEADLINE, schedules::list::<DueRequest>(connection)).await;
    let Ok(Ok(found)) = found else { return Err(silent()) };
    let schedules = found.into_iter().map(ScheduleView::from).collect();
    Ok(json(&ScheduleList { schedules }))
}

/// Look up a schedule
#[utoipa::path(
    get,
    path = "/schedules/{name}",
    operation_id = "schedule",
    tag = "schedules",
    params((
        "name" = String, Path, description = "The name of the schedule", pattern = "^[A-Za-z0-9_-]{1,64}$",
        example = "nightly",
    )),
    responses(
        (status = 200, description = "The schedule", body = ScheduleView, example = json!({
            "name": "nightly", "cron": "0 30 3 * * *", "time_zone": "Europe/Berlin",
            "count": 100, "length": 32, "priority": "low"
        })),
    )
)]
pub(crate) async fn show(
    State(gateway): State<Arc<Gateway>>,
    uri: Uri,
) -> Result<Response, Problem> {
    let NoQuery {} = query(&uri)?;
    let name = name(&uri)?;
    let connection = gateway.connection()?;
    match timeout(DEADLINE, schedules::get::<DueRequest>(connection, name)).await {
        Ok(Ok(Some(schedule))) => Ok(json(&ScheduleView::from(schedule))),
        Ok(Ok(None)) => Err(none(name)),
        Ok(Err(_)) | Err(_) => Err(silent()),
    }
}

/// Set a schedule
///
/// Makes a request at an interval, or at the times of a cron expression, until the schedule is removed. It replaces a
/// different schedule with the same name, and leaves an equal one as it is. If it falls due while the broker is away,
/// it makes one request when the broker is back.
#[utoipa::path(
    put,
    path = "/schedules/{name}",
    operation_id = "set_schedule",
    tag = "schedules",
    params((
        "name" = String, Path, description = "The name of the schedule", pattern = "^[A-Za-z0-9_-]{1,64}$",
        example = "nightly",
    )),
    request_body(
        content((NewSchedule = "application/json", example = json!({
            "cron": "0 30 3 * * *", "time_zone": "Europe/Berlin", "count": 100, "length": 32, "priority": "low"
        }))),
        description = "The recurrence, and the strings to ask for each time"
    ),
    responses(
        (status = 200, description = "The schedule is set, in place of one with the same name",
         body = ScheduleView, example = json!({
            "name": "nightly", "cron": "0 30 3 * * *", "time_zone": "Europe/Berlin",
            "count": 100, "length": 32, "priority": "low"
        })),
        (status = 201, description = "The schedule is set, and is new", body = ScheduleView,
         headers(("Location" = String, description = "The address of the schedule, relative to this one")),
         example = json!({ "name": "often", "every": "10s", "count": 1, "length": 64, "priority": "normal" })),
    )
)]
pub(crate) async fn set(
    State(gateway): State<Arc<Gateway>>,
    request: Request,
) -> Result<Response, Problem> {
    let NoQuery {} = query(request.uri())?;
    let name = name(request.uri())?.to_owned();
    let body = read_body(request).await?;
    let submissions = submissions(&gateway)?;
    let (recurrence, job) = NewSchedule::read(&body, &name)?;
    let setting = submissions.producer.schedule(&name, &recurrence, &job);
    let set = match timeout(DEADLINE, setting).await.map_err(|_| silent())? {
        Ok(set) => set,
        // The input was valid as far as the gateway can check it. The broker found the fault.
        Err(PublishError::Invalid(reason)) => return Err(ProblemKind::Impossible.because(reason)),
        Err(PublishError::Full(_)) => {
            return Err(ProblemKind::QueueFull.because("there is no room for another schedule"));
        }
        Err(error) => return Err(refused(&name, &chain(&error))),
    };
    let location = [(header::LOCATION, name.clone())];
    let body = json(&ScheduleView::from(Schedule { name, recurrence, job }));
    Ok(match set {
        ScheduleOutcome::Created => (StatusCode::CREATED, location, body).into_response(),
        ScheduleOutcome::Replaced | ScheduleOutcome::Unchanged => body,
    })
}

/// Remove a schedule
///
/// Its earlier requests are still handled.
#[utoipa::path(
    delete,
    path = "/schedules/{name}",
    operation_id = "remove_schedule",
    tag = "schedules",
    params((
        "name" = String, Path, description = "The name of the schedule", pattern = "^[A-Za-z0-9_-]{1,64}$",
        example = "nightly",
    )),
    responses((status = 204, description = "The schedule is removed"))
)]
pub(crate) async fn remove(
    State(gateway): State<Arc<Gateway>>,
    uri: Uri,
) -> Result<Response, Problem> {
    let NoQuery {} = query(&uri)?;
    let name = name(&uri)?;
    let removing = submissions(&gateway)?.producer.unschedule::<DueRequest>(name);
    match timeout(DEADLINE, removing).await {
        Ok(Ok(true)) => Ok(StatusCode::NO_CONTENT.into_response()),
        Ok(Ok(false)) => Err(none(name)),
        Ok(Err(error)) => Err(refused(name, &chain(&error))),
        Err(_) => Err(silent()),
    }
}

/// The name at the end of a path. It is not unescaped, because a name needs no escapes.
fn name(uri: &Uri) -> Result<&str, Problem> {
    let name = uri.path().rsplit('/').next().unwrap_or_default();
    let checked = schedules::check_name(name);
    checked.map(|()| name).map_err(|error| ProblemKind::Invalid.because(error))
}

fn submissions(gateway: &Gateway) -> Result<&Submissions, Problem> {
    gateway.connection()?;
    gateway.submissions.get().ok_or_else(silent)
}

fn none(name: &str) -> Problem {
    ProblemKind::NoSchedule.because(format_args!("no schedule has the name {name}"))
}

fn silent() -> Problem {
    ProblemKind::BrokerAway.because("the broker does not answer; it is safe to try again")
}

fn refused(name: &str, reason: &str) -> Problem {
    error!(schedule = name, reason, "the broker refuses a schedule");
    ProblemKind::Refused.because(format_args!(
        "the broker refuses the schedule {name}; its reason is in the log of the gateway"
    ))
}
