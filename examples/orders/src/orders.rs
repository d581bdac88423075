//! The order service: orders, their events, and the outcomes.

use anyhow::bail;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use sqlx::Error;
use sqlx::migrate::Migrator;
use workqueue::{Context, Failure, Handler, JobId, Producer, Settings, Span, Trace, variable};

use crate::database::{Database, Writing, is_transient, patiently};
use crate::{Change, OrderEvent, Outcome};

/// The tables of the order service.
pub const TABLES: Migrator = sqlx::migrate!("migrations/orders");

/// The sequence of the commit of an order and the publish of its event.
#[derive(Clone, Debug)]
pub enum Publish {
    /// The event is committed with the order, and a relay publishes it.
    Outbox,
    /// Commit, then publish: a crash in between loses the event.
    AfterCommit(Producer),
    /// Publish, then commit: a crash in between leaves the event of an order that does not exist.
    BeforeCommit(Producer),
}

impl Publish {
    /// Reads the variable `PUBLISH`. The default is the outbox. The naive ways wait for the broker here.
    ///
    /// # Errors
    ///
    /// If its value is unknown, or the broker refuses the credentials.
    pub async fn from_env(settings: &Settings) -> anyhow::Result<Self> {
        Ok(match variable("PUBLISH").as_deref() {
            None | Some("outbox") => Self::Outbox,
            Some("after-commit") => Self::AfterCommit(Producer::connect(settings).await?),
            Some("before-commit") => Self::BeforeCommit(Producer::connect(settings).await?),
            Some(_) => bail!("PUBLISH is neither outbox, nor after-commit, nor before-commit"),
        })
    }
}

/// Accepts orders over HTTP.
#[derive(Clone, Debug)]
pub struct Orders {
    /// The database of the orders.
    pub database: Database,
    /// The sequence of commit and publish.
    pub publish: Publish,
}

/// A new order.
#[derive(Deserialize)]
struct NewOrder {
    /// A client that got no answer repeats its order with the same id: an id has one order.
    #[serde(default = "JobId::new")]
    id: JobId,
    item: String,
    amount: std::num::NonZeroU32,
}

/// An order in the HTTP API.
#[derive(Serialize, sqlx::FromRow)]
struct Order {
    id: String,
    item: String,
    amount: i64,
    /// `placed`, then `paid` or `declined`; `cancelling`, then `refunded` or `cancelled`.
    status: String,
}

impl Orders {
    /// The routes of its HTTP API, and its page.
    pub fn routes(self) -> Router {
        Router::new()
            .route("/", get(Html(include_str!("page.html"))))
            .route("/orders", get(list).post(place))
            .route("/orders/{id}", get(show).delete(cancel))
            .with_state(self)
    }

    /// Commits a change of an order, and publishes its event, or leaves that to the relay.
    async fn commit(&self, mut changes: Writing, event: OrderEvent, trace: &Trace) -> Answer<()> {
        match &self.publish {
            Publish::Outbox => {
                let row = "INSERT INTO outbox (id, order_id, number, body, traceparent) \
                     VALUES ($1, $2, $3, $4, $5)";
                let row = sqlx::query(row).bind(event.id.to_string()).bind(event.order.to_string());
                let row = row.bind(event.number).bind(serde_json::to_string(&event)?);
                row.bind(trace.parent()).execute(&mut *changes).await?;
                self.database.notify(&mut changes).await?;
                changes.commit().await?;
            }
            Publish::AfterCommit(producer) => {
                changes.commit().await?;
                producer.publish(&event, event.id, trace, None).await?;
            }
            Publish::BeforeCommit(producer) => {
                producer.publish(&event, event.id, trace, None).await?;
                changes.commit().await?;
            }
        }
        Ok(())
    }
}

/// Answers 201, or 200 if there is an order with this id already. Only then is the order accepted.
async fn place(
    State(orders): State<Orders>,
    headers: HeaderMap,
    Json(NewOrder { id, item, amount }): Json<NewOrder>,
) -> Answer<(StatusCode, Json<Order>)> {
    let trace = Trace::of_request(&headers);
    let span = Span::server("POST /orders", &trace);
    let mut transaction = orders.database.begin().await?;
    let order = "INSERT INTO orders (id, item, amount, status, events) \
         VALUES ($1, $2, $3, 'placed', 1) ON CONFLICT (id) DO NOTHING";
    let order = sqlx::query(order).bind(id.to_string()).bind(item).bind(i64::from(amount.get()));
    let status = if order.execute(&mut *transaction).await?.rows_affected() == 1 {
        let (change, amount) = (Change::Placed, amount.get().into());
        let event = OrderEvent { id: JobId::new(), order: id, number: 1, change, amount };
        orders.commit(transaction, event, &span.trace(&trace)).await?;
        StatusCode::CREATED
    } else {
        transaction.rollback().await?;
        StatusCode::OK
    };
    Ok((status, show(State(orders), Path(id)).await?))
}

/// Answers 202, also if the order is cancelled already: a client that got no answer repeats its request.
async fn cancel(
    State(orders): State<Orders>,
    Path(id): Path<JobId>,
    headers: HeaderMap,
) -> Answer<StatusCode> {
    let trace = Trace::of_request(&headers);
    let span = Span::server("DELETE /orders/{id}", &trace);
    let mut transaction = orders.database.begin().await?;
    let cancel = "UPDATE orders SET status = 'cancelling', events = 2 \
         WHERE id = $1 AND events = 1 RETURNING amount";
    let cancel = sqlx::query_scalar(cancel).bind(id.to_string());
    let Some(amount) = cancel.fetch_optional(&mut *transaction).await? else {
        transaction.rollback().await?;
        // If there is no such order, this answers 404.
        return show(State(orders), Path(id)).await.map(|_cancelled| StatusCode::ACCEPTED);
    };
    let change = Change::Cancelled;
    let event = OrderEvent { id: JobId::new(), order: id, number: 2, change, amount };
    orders.commit(transaction, event, &span.trace(&trace)).await?;
    Ok(StatusCode::ACCEPTED)
}

async fn show(State(orders): State<Orders>, Path(id): Path<JobId>) -> Answer<Json<Order>> {
    let order = sqlx::query_as("SELECT id, item, amount, status FROM orders WHERE id = $1");
    Ok(Json(order.bind(id.to_string()).fetch_one(&orders.database.pool).await?))
}

/// The last 100 orders, the newest first.
async fn list(State(orders): State<Orders>) -> Answer<Json<Vec<Order>>> {
    let list = "SELECT id, item, amount, status FROM orders ORDER BY id DESC LIMIT 100";
    Ok(Json(sqlx::query_as(list).fetch_all(&orders.database.pool).await?))
}

/// An answer, or a problem.
type Answer<T> = Result<T, Problem>;

/// The error of a request.
struct Problem(anyhow::Error);

impl<E: Into<anyhow::Error>> From<E> for Problem {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = match self.0.downcast_ref::<Error>() {
            Some(Error::RowNotFound) => StatusCode::NOT_FOUND,
            Some(error) if is_transient(error) => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        (status, format!("{:#}\n", self.0)).into_response()
    }
}

/// Updates the status of an order with the outcomes of its events. It needs no inbox: a repeated or late outcome has no
/// higher number than the last one, and changes nothing.
pub struct StatusFollower(pub Database);

impl Handler for StatusFollower {
    type Job = Outcome;

    async fn handle(&self, outcome: Outcome, _cx: &Context) -> Result<(), Failure> {
        let Outcome { order, number, status } = outcome;
        let update = "UPDATE orders SET settled = $2, \
             status = CASE WHEN events = $2 THEN $3 ELSE status END WHERE id = $1 AND settled < $2";
        let update = || sqlx::query(update).bind(order.to_string()).bind(number).bind(&status);
        patiently(|| update().execute(&self.0.pool)).await?;
        Ok(())
    }
}
