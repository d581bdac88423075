//! The flow on the page, and a service that stops.

use std::time::Duration;

use async_nats::HeaderMap;
use contract::Amount;
use contract::facts::REQUESTED;
use contract::queues::{Request, SCHEDULES};
use serde_json::{Value, json};
use testkit::http;
use testkit::process::logged;
use workqueue::topology::{self, Limits};
use workqueue::{JobId, now};

use crate::browser::Browser;
use crate::deployment::{Deployment, LIMITS, Service, creation, ready, succeeded};
use crate::gateway::GatewayProcess;

/// Whether the first chart, that of REQUESTS, has a line of this kind.
fn drawn(kind: &str) -> String {
    format!("document.querySelector('.chart.generator .{kind}').getAttribute('d')")
}

#[tokio::test]
async fn stopped_generator_is_away_and_the_queue_fills_and_drains() {
    let deployment = Deployment::start().await;
    let rate = [("INSTANCE", "requestor-1"), ("REQUEST_RATE", "50")];
    let _requestor = deployment.run(Service::Requestor, "requestor", &rate).await;
    let one = [("INSTANCE", "generator-1")];
    let mut generator = deployment.run(Service::Generator, "generator", &one).await;
    ready(&generator).await;
    let gateway = GatewayProcess::start(&deployment).await;
    let browser = Browser::start().await;
    browser.open(&gateway.url()).await;

    browser.says("#status", "live").await;
    browser.says("#requestor .replica", "requestor-1").await;
    browser.says("#generator .replica", "generator-1").await;
    browser.says("#generator .replica", concat!("version ", env!("CARGO_PKG_VERSION"))).await;
    browser.says("#generator .replica", "makes ").await;
    browser.until("document.querySelector('#queue-REQUESTS .way').dataset.speed > 0").await;
    browser.says("#last-rows tr", "generator-1").await;
    browser.says("#verdict-word", "No loss seen by counts").await;

    generator.terminate().unwrap();
    succeeded(&mut generator).await;
    browser.says("#generator .away", "away").await;
    browser.says("#event-log", "generator away").await;
    browser.says("#event-log", "queue REQUESTS filling").await;
    browser.until(&drawn("away")).await;
    browser
        .until("parseInt(document.querySelector('#queue-REQUESTS .waiting b').innerText) > 50")
        .await;
    // It disappears at the end, and is not only grey.
    browser.until("document.querySelectorAll('#generator .replica').length === 0").await;
    browser.says("#status", "live").await;

    let two = [("INSTANCE", "generator-2")];
    let _generator = deployment.run(Service::Generator, "another", &two).await;
    browser.says("#generator .replica", "generator-2").await;
    browser.until("document.querySelector('#generator .away').hidden").await;
    browser.says("#event-log", "generator back").await;
    browser.says("#event-log", "queue REQUESTS drained").await;

    // A page that is opened later shows the same on its axis.
    let late = Browser::start().await;
    late.open(&gateway.url()).await;
    late.says("#event-log", "generator away").await;
    late.says("#event-log", "queue REQUESTS drained").await;
    late.until(&drawn("away")).await;
    assert_eq!(late.complaints().await, [""; 0]);
    assert_eq!(browser.complaints().await, [""; 0]);
}

#[tokio::test]
async fn lost_requests_are_missing_and_forgotten_ones_are_not() {
    let deployment = Deployment::start().await;
    let amount = Amount::new(1, 8).unwrap();
    let requested = async || {
        let (id, requestor) = (JobId::new(), "somebody".to_owned());
        let request = Request::new(id, amount, requestor, workqueue::now());
        deployment.publish(&creation(&request)).await;
    };
    requested().await;
    requested().await;
    // These requests have expired, and so have all their facts.
    let stream = deployment.nats().get_stream(REQUESTED.stream).await.unwrap();
    stream.purge().await.unwrap();
    let gateway = GatewayProcess::start(&deployment).await;
    let browser = Browser::start().await;
    browser.open(&gateway.url()).await;
    browser.says("#number-requested", "2").await;
    browser.until("document.querySelector('#verdict').dataset.state === 'good'").await;
    // A request that was accepted, and is nowhere.
    requested().await;
    browser.says("#verdict-word", "1 not accounted for").await;
    // A later dead letter of another request hides it, because the page only compares counts.
    deployment
        .publish_raw(&workqueue::dead_letters::subject("REQUESTS", "x"), HeaderMap::new(), b"x")
        .await;
    browser.says("#verdict-word", "No loss seen by counts").await;
}

#[tokio::test]
async fn hanging_replica_turns_grey_and_comes_back() {
    let deployment = Deployment::start().await;
    let one = [("INSTANCE", "generator-1")];
    let generator = deployment.run(Service::Generator, "generator", &one).await;
    let gateway = GatewayProcess::start(&deployment).await;
    let browser = Browser::start().await;
    browser.open(&gateway.url()).await;
    browser.until("document.querySelector('.replica[data-state=ready]')").await;
    generator.pause().unwrap();
    browser.until("document.querySelector('.replica[data-state=silent]')").await;
    browser.says("#generator .away", "away").await;
    generator.resume().unwrap();
    browser.until("document.querySelector('.replica[data-state=ready]')").await;
}

/// Another replica answers when the page begins an audit.
const ANOTHER_REPLICA: &str = "
    const fetched = window.fetch;
    window.fetch = async (url, ...more) =>
      (url === 'api/audit' ? Response.json({ instance: 'gateway-2' }, { status: 202 }) : fetched(url, ...more));";

/// Counts the changes of the axis and of its table.
const COUNT_CHANGES: &str = "
    window.changes = { axis: 0, table: 0 };
    new MutationObserver(() => (window.changes.axis += 1))
      .observe(document.querySelector('.chart .area'), { attributes: true });
    new MutationObserver(() => (window.changes.table += 1))
      .observe(document.querySelector('#axis-table thead'), { childList: true });";

#[tokio::test]
async fn button_runs_the_audit_and_all_pages_show_its_verdict() {
    let deployment = Deployment::start().await;
    let _generator = deployment.run(Service::Generator, "generator", &[]).await;
    let mut requestor = deployment.ask(100).await;
    succeeded(&mut requestor).await;
    deployment.verdict().await;
    let gateway = GatewayProcess::start(&deployment).await;
    let browser = Browser::start().await;
    browser.open(&gateway.url()).await;
    let first = browser.client.window().await.unwrap();
    browser.open_another(&gateway.url()).await;
    browser.says("#number-received", "100").await;
    browser.press("#audit-button").await;
    browser.says("#audit", "Nothing lost, nothing doubled.").await;
    browser.client.switch_to_window(first).await.unwrap();
    browser.says("#audit", "Nothing lost, nothing doubled.").await;
    browser.says("#audit", "complete\n100").await;
    // Another replica has begun it, whose events this page does not get.
    browser.run(ANOTHER_REPLICA).await;
    browser.press("#audit-button").await;
    browser.says("#audit", "The audit runs at gateway-2.").await;
    browser.until("!document.querySelector('#audit-button').ariaDisabled").await;
}

#[tokio::test]
async fn page_shows_full_and_paused_queues_and_schedules() {
    let deployment = Deployment::with(&Limits { queue_limit: 3, ..LIMITS }).await;
    let gateway = GatewayProcess::start(&deployment).await;
    logged(&gateway.process, "accepting requests").await;
    let browser = Browser::start().await;
    browser.open(&gateway.url()).await;
    browser.says("#status", "live").await;
    let ask = async |body: Value| {
        let body = body.to_string();
        let headers = [("Content-Type", "application/json")];
        let asking = http::ask(gateway.addr, "POST", "/requests", &headers, &body);
        let answer = asking.await.unwrap();
        assert_eq!(answer.status, 202, "{answer:?}");
    };
    ask(json!({"delay": "1h"})).await;
    browser.says("#scheduled", "SCHEDULES: 1 not due yet").await;
    for _ in 0..3 {
        ask(json!({})).await;
    }
    browser.says("#queue-REQUESTS .full", "full: its publishers wait").await;
    browser.says("#queue-REQUESTS .oldest", "oldest message ").await;
    let rate = [("REQUEST_RATE", "10")];
    let _requestor = deployment.run(Service::Requestor, "requestor", &rate).await;
    browser.says("#requestor .replica", "waits: REQUESTS full").await;
    browser.says("#event-log", "queue REQUESTS full: its publishers wait").await;
    browser.press("#queue-REQUESTS .pause").await;
    browser.says("#queue-REQUESTS .full", "paused until").await;
    browser.says("#event-log", "queue REQUESTS paused").await;
    topology::pause(deployment.nats(), SCHEDULES, now() + Duration::from_mins(9)).await.unwrap();
    browser.says("#scheduled", "paused until").await;
    browser.says("#event-log", "queue SCHEDULES paused").await;
    browser.says("#schedules-pause", "Resume").await;
    browser.press("#schedules-pause").await;
    browser.says("#event-log", "queue SCHEDULES resumed").await;
    browser.press("#axis-table summary").await;
    let cells = |row: &str| format!("document.querySelectorAll('#axis-table {row} > *').length");
    browser.until(&format!("{} === 12", cells("thead tr"))).await;
    browser.until(&format!("{} === 12", cells("tbody tr:first-child"))).await;
    // The table has each fifteenth second, and stays as it is in between.
    browser.run(COUNT_CHANGES).await;
    browser.until("window.changes.axis >= 5").await;
    let changes = browser.run("return window.changes.table").await;
    assert!(changes.as_u64() < Some(3), "{changes}");
    browser.press("#queue-REQUESTS .pause").await;
    let _generator = deployment.run(Service::Generator, "generator", &[]).await;
    browser.says("#event-log", "queue REQUESTS has room again").await;
    assert_eq!(browser.complaints().await, [""; 0]);
}
