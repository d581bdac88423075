//! Requests on the page, and their strings.

use contract::Amount;
use contract::facts::{IDEMPOTENCY, REQUESTED, Received};
use contract::queues::{REQUESTS, Request};
use serde_json::json;
use testkit::process::logged;
use testkit::proxy::Proxy;

use crate::browser::Browser;
use crate::deployment::{self, Deployment, Service, api_addr, creation, publication};
use crate::gateway::GatewayProcess;

#[tokio::test]
async fn string_requested_on_the_page_is_received() {
    let deployment = Deployment::start().await;
    let settings = [("INSTANCE", "requestor-1"), ("REQUEST_RATE", "0")];
    let _requestor = deployment.run(Service::Requestor, "requestor", &settings).await;
    let gateway = GatewayProcess::start(&deployment).await;
    let browser = Browser::start().await;
    browser.open(&gateway.url()).await;

    logged(&gateway.process, "accepting requests").await;
    browser.press("#ask-form button").await;
    // No generator runs yet.
    browser.says("#history", "It is in REQUESTS.").await;
    browser.says("#history-steps", "not made yet").await;
    let _generator =
        deployment.run(Service::Generator, "generator", &[("INSTANCE", "generator-1")]).await;
    browser.says("#history", "It is complete.").await;
    for step in ["asked", "by generator-1", "by requestor-1", "marked as received"] {
        browser.says("#history-steps", step).await;
    }
    browser.until("document.querySelector('#history-strings pre').innerText.length === 16").await;
    browser.press("#history-close").await;
    browser.until("!document.querySelector('#history').open").await;

    // The same history from the list, and by its id.
    let id = browser.run("return document.querySelector('#history-id').textContent").await;
    browser.press("#last-rows button").await;
    browser.says("#history", "It is complete.").await;
    browser.press("#history-close").await;
    browser.write("#find", id.as_str().unwrap()).await;
    browser.press("#find-form button").await;
    browser.says("#history", "It is complete.").await;
    assert_eq!(browser.complaints().await, [""; 0]);
}

#[tokio::test]
async fn second_press_without_an_answer_makes_no_second_request() {
    let deployment = Deployment::start().await;
    let proxy = Proxy::start(deployment.broker.port()).await.unwrap();
    let gateway = deployment::gateway(&proxy.url(), deployment.log("gateway"), &[]).await;
    logged(&gateway, "accepting requests").await;
    let browser = Browser::start().await;
    browser.open(&format!("http://{}/", api_addr(&gateway).await)).await;
    // The broker has the first request, but its confirmation does not arrive.
    proxy.hold("$KV.requested.");
    browser.press("#ask-form button").await;
    browser.says("#ask-note", "Press again: it is safe").await;
    proxy.release();
    browser.press("#ask-form button").await;
    browser.says("#ask-note", "Accepted as").await;
    assert_eq!(deployment.facts(REQUESTED).await, 1);
    browser.press("#history-close").await;
    browser.press("#ask-form button").await;
    browser.until("document.querySelector('#history').open").await;
    assert_eq!(deployment.facts(REQUESTED).await, 2);
    // Each request has a key of its own, and all its tries have the same key.
    assert_eq!(deployment.facts(IDEMPOTENCY).await, 2);
    assert_eq!(deployment.depth(REQUESTS).await, 2);
}

/// The first requests for strings get an answer that breaks off, then that of a proxy, then that of a busy gateway.
const WITHOUT_ACCEPTANCE: &str = "
    const fetched = window.fetch;
    const broken = new ReadableStream({ start: (it) => it.error(new Error('cut')) });
    const answers = [
      new Response(broken, { status: 202 }),
      new Response('', { status: 502 }),
      Response.json({ detail: 'it is busy', outcome: 'not-asked' }, { status: 503 }),
    ];
    window.keys = [];
    window.fetch = async (url, options) => {
      if (url !== 'requests') return fetched(url, options);
      window.keys.push(options.headers['Idempotency-Key']);
      return answers.shift() ?? fetched(url, options);
    };";

#[tokio::test]
async fn key_of_an_unknown_outcome_is_kept_until_its_acceptance() {
    let deployment = Deployment::start().await;
    let gateway = GatewayProcess::start(&deployment).await;
    logged(&gateway.process, "accepting requests").await;
    let browser = Browser::start().await;
    browser.open(&gateway.url()).await;
    browser.run(WITHOUT_ACCEPTANCE).await;
    for words in ["the gateway does not answer", "the gateway answers 502", "it is busy"] {
        browser.press("#ask-form button").await;
        browser.says("#ask-note", &format!("is unknown: {words}. Press again: it is safe")).await;
        browser.until("document.activeElement.closest('#ask-form')").await;
    }
    browser.press("#ask-form button").await;
    browser.says("#ask-note", "Accepted as").await;
    browser.until("window.keys.length === 4 && new Set(window.keys).size === 1").await;
    browser.press("#history-close").await;
    browser.press("#ask-form button").await;
    browser.until("window.keys.length === 5 && new Set(window.keys).size === 2").await;
}

#[tokio::test]
async fn times_have_the_unit_that_fits_and_their_date() {
    let deployment = Deployment::bare().await;
    let gateway = GatewayProcess::start(&deployment).await;
    let browser = Browser::start().await;
    browser.open(&gateway.url()).await;
    let shown = "return import(new URL('dom.js', location)).then(({ moment, span }) =>
        [moment('2020-01-02T12:00:00Z').split(' ')[0], moment(Date.now()).split(' ').length,
         ...[9.96, 999.6, 59_960, 119_700, 3_599_600].map(span)])";
    let expected =
        json!(["02/01/2020", 1, "10 ms", "1.0 s", "1 min 0 s", "2 min 0 s", "1 h 0 min"]);
    assert_eq!(browser.run(shown).await, expected);
}

#[tokio::test]
async fn largest_strings_have_room_in_the_list() {
    let deployment = Deployment::start().await;
    let _generator = deployment.run(Service::Generator, "generator", &[]).await;
    let _requestor =
        deployment.run(Service::Requestor, "requestor", &[("REQUEST_RATE", "0")]).await;
    let amount = Amount::new(64, 1024).unwrap();
    for _ in 0..8 {
        let (id, requestor) = (workqueue::JobId::new(), "somebody".to_owned());
        let request = Request::new(id, amount, requestor, workqueue::now());
        deployment.publish(&publication(&request)).await;
        deployment.publish(&creation(&request)).await;
        let _: Received = deployment.fact_eventually(id).await;
    }
    let gateway = GatewayProcess::start(&deployment).await;
    let browser = Browser::start().await;
    browser.open(&gateway.url()).await;
    let rows = "[...document.querySelectorAll('#last-rows button')].map(it => it.innerText)";
    let read = "row => !row.startsWith('on its way') && !row.startsWith('too large')";
    browser.until(&format!("{rows}.length === 8 && {rows}.every({read})")).await;
}
