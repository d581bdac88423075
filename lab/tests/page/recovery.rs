//! The page when the broker, or the gateway, goes away and comes back.

use crate::browser::Browser;
use crate::deployment::{Deployment, Service};
use crate::gateway::GatewayProcess;

#[tokio::test]
async fn page_shows_an_outage_of_the_broker_and_recovers() {
    let mut deployment = Deployment::start().await;
    let _generator = deployment.run(Service::Generator, "generator", &[]).await;
    let rate = [("REQUEST_RATE", "20")];
    let _requestor = deployment.run(Service::Requestor, "requestor", &rate).await;
    let gateway = GatewayProcess::start(&deployment).await;
    let browser = Browser::start().await;
    browser.open(&gateway.url()).await;
    browser.says("#last-rows tr", ":").await;

    deployment.broker.kill().await.unwrap();
    browser.says("#banner", "The broker does not answer").await;
    browser.says("#status", "does not answer").await;
    // The last snapshot stays, in grey.
    browser.until("document.querySelector('main.stale #last-rows tr')").await;
    // A page that is opened now shows the same.
    browser.open_another(&gateway.url()).await;
    browser.says("#banner", "The broker does not answer").await;
    browser.says("#queue-REQUESTS", "waiting").await;
    deployment.broker.restart().await.unwrap();
    browser.until("document.querySelector('#banner').hidden").await;
    browser.says("#status", "live").await;
    browser.says("#event-log", "data from the broker again").await;
    browser.until("!document.querySelector('main.stale')").await;
}

#[tokio::test]
async fn page_works_before_the_broker_starts() {
    let mut deployment = Deployment::start().await;
    deployment.broker.kill().await.unwrap();
    let gateway = GatewayProcess::start(&deployment).await;
    let browser = Browser::start().await;
    browser.open(&gateway.url()).await;
    browser.says("#banner", "no broker answers").await;
    deployment.broker.restart().await.unwrap();
    browser.says("#status", "live").await;
    browser.says("#queue-REQUESTS", "waiting").await;
}

#[tokio::test]
async fn silent_connection_is_replaced() {
    let deployment = Deployment::start().await;
    let gateway = GatewayProcess::start(&deployment).await;
    let browser = Browser::start().await;
    browser.open(&gateway.url()).await;
    browser.says("#status", "live").await;
    // The connection stays open, but no data comes.
    gateway.process.pause().unwrap();
    browser.says("#banner", "The gateway does not answer").await;
    browser.says("#status", "no gateway").await;
    gateway.process.resume().unwrap();
    browser.says("#status", "live").await;
    browser.until("document.querySelector('#banner').hidden").await;
}

/// Collects the connections that the page opens from now on, and lets a test hide the page.
const OBSERVED: &str = "
    window.sources = [];
    window.EventSource = class extends EventSource {
      constructor(url) {
        super(url);
        window.sources.push(this);
      }
    };
    window.hide = (hidden) => {
      Object.defineProperty(document, 'hidden', { configurable: true, value: hidden });
      document.dispatchEvent(new Event('visibilitychange'));
    };";

/// Lets the page hear a snapshot of a much later second.
const LATER: &str = "
    const point = { n: 1e9, at: Date.now(), queues: null, schedules: null, requestors: 0, generators: 0 };
    const data = JSON.stringify({ at: Date.now(), trouble: null, flow: null, point });
    window.sources[0].dispatchEvent(new MessageEvent('snapshot', { data }));";

#[tokio::test]
async fn page_that_missed_snapshots_connects_again() {
    let deployment = Deployment::start().await;
    let gateway = GatewayProcess::start(&deployment).await;
    let browser = Browser::start().await;
    browser.open(&gateway.url()).await;
    browser.says("#status", "live").await;
    browser.run(OBSERVED).await;
    browser.run("window.hide(true); window.hide(false);").await;
    browser.until("window.sources.length === 1 && window.sources[0].readyState === 1").await;
    browser.run(LATER).await;
    browser.until("window.sources.map(it => it.readyState).join() === '2,1'").await;
    browser.says("#status", "live").await;
    assert_eq!(browser.complaints().await, [""; 0]);
}

#[tokio::test]
async fn broker_without_queues_is_not_silent_and_shows_replicas() {
    let deployment = Deployment::start().await;
    let _generator =
        deployment.run(Service::Generator, "one", &[("INSTANCE", "generator-1")]).await;
    let gateway = GatewayProcess::start(&deployment).await;
    let browser = Browser::start().await;
    browser.open(&gateway.url()).await;
    browser.says("#generator .replica", "generator-1").await;
    deployment.nats().delete_stream(contract::facts::REQUESTED.stream).await.unwrap();
    browser.says("#status", "nothing is declared").await;
    browser.says("#banner", "decoupled declare").await;
    // Also for a new replica, and on a new page.
    let _another = deployment.run(Service::Generator, "two", &[("INSTANCE", "generator-2")]).await;
    browser.says("#generator .replica", "generator-2").await;
    browser.open_another(&gateway.url()).await;
    browser.says("#generator .replica", "generator-1").await;
    browser.says("#generator .replica", "generator-2").await;
}

#[tokio::test]
async fn page_finds_a_restarted_gateway() {
    let deployment = Deployment::start().await;
    let gateway = GatewayProcess::start(&deployment).await;
    let addr = gateway.addr.to_string();
    let browser = Browser::start().await;
    browser.open(&gateway.url()).await;
    browser.says("#status", "live").await;
    let GatewayProcess { mut process, .. } = gateway;
    process.kill().await.unwrap();
    browser.says("#banner", "The gateway does not answer").await;
    let _gateway = GatewayProcess::with(&deployment, &[("GATEWAY_ADDR", &addr)]).await;
    browser.says("#status", "live").await;
    browser.until("document.querySelector('#banner').hidden").await;
}
