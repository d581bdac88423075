//! The order service: `POST /orders`, `GET /orders`, `GET /orders/<id>`, `DELETE /orders/<id>`, and a page.

use std::pin::pin;

use anyhow::Context;
use futures_util::{FutureExt, future::select};
use orders::Program;
use orders::orders::{Orders, Publish, StatusFollower, TABLES};
use tokio::net::TcpListener;
use tokio::time::sleep;
use workqueue::http::{ServerLimits, serve};
use workqueue::{Service, variable};

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let Some(program) = Program::start("orders.db", TABLES).await? else { return Ok(()) };
    let Program { settings, database, stop, .. } = &program;
    let address = variable("LISTEN_ADDR").unwrap_or_else(|| "127.0.0.1:8091".to_owned());
    let listener = TcpListener::bind(address).await.context("cannot listen (LISTEN_ADDR)")?;
    tracing::info!(addr = %listener.local_addr()?, "HTTP listens");
    let publish = stop.run_until_cancelled(Publish::from_env(settings)).await;
    let Some(publish) = publish else { return Ok(()) };
    let orders = Orders { database: database.clone(), publish: publish? };
    let http = pin!(serve(listener, orders.routes(), ServerLimits::OF_A_PAGE, stop.clone()));
    // In the naive ways an answer waits until the broker is back.
    let deadline = pin!(stop.cancelled().then(|()| sleep(settings.drain_timeout)));
    let http = select(http, deadline).map(|_| Ok(()));
    let follower = Service::new("orders").consume(StatusFollower(database.clone()));
    tokio::try_join!(http, follower.run(settings, stop))?;
    Ok(())
}
