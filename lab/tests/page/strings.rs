//! Asking for strings, and following them home.

use contract::Amount;
use contract::facts::{Fact, Received};
use contract::headers::Trace;
use contract::queues::{Message, Request};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use crate::browser::Browser;
use crate::deployment::{Deployment, Side, api_addr};
use crate::viewer::Viewer;

#[tokio::test]
async fn a_string_that_somebody_asks_for_comes_home() {
    let deployment = Deployment::start().await;
    let settings = [("INSTANCE", "requestor-1"), ("REQUEST_RATE", "0")];
    let requestor = deployment.run(Side::Requestor, "requestor", &settings).await;
    let api = format!("http://{}", api_addr(&requestor).await);
    let viewer = Viewer::with(&deployment, "127.0.0.1:0", &[("API_URL", &api)]).await;
    let browser = Browser::start().await;
    browser.open(&viewer.url()).await;

    browser.press("#ask-form button").await;
    // Nobody is there to make it yet.
    browser.says("#life", "It is in REQUESTS.").await;
    browser.says("#life-steps", "not made yet").await;
    let _generator =
        deployment.run(Side::Generator, "generator", &[("INSTANCE", "generator-1")]).await;
    browser.says("#life", "It has come home.").await;
    for step in ["asked", "by generator-1", "by requestor-1", "marked as received"] {
        browser.says("#life-steps", step).await;
    }
    browser.until("document.querySelector('#life-strings pre').innerText.length === 16").await;
    browser.press("#life-close").await;
    browser.until("!document.querySelector('#life').open").await;

    // The same from the list, and by its id.
    let id = browser.run("return document.querySelector('#life-id').textContent").await;
    browser.press("#last-rows button").await;
    browser.says("#life", "It has come home.").await;
    browser.press("#life-close").await;
    browser.write("#find", id.as_str().unwrap()).await;
    browser.press("#find-form button").await;
    browser.says("#life", "It has come home.").await;
    assert_eq!(browser.complaints().await, [""; 0]);
}

/// An API that does not know what came of the first request, and accepts the others. Gives its address,
/// and the keys that it is asked under.
async fn forgetful_api() -> (String, mpsc::UnboundedReceiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = format!("http://{}", listener.local_addr().unwrap());
    let (keys, asked) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        let unknown =
            ("503 Service Unavailable", r#"{"detail":"a pause","outcome":"unknown"}"#.into());
        let accepted = || ("202 Accepted", format!(r#"{{"id":"{}"}}"#, contract::RequestId::new()));
        for (status, body) in [unknown, accepted(), accepted()] {
            let (mut connection, _) = listener.accept().await.unwrap();
            let mut heard = Vec::new();
            while !heard.ends_with(b"}") {
                assert_ne!(connection.read_buf(&mut heard).await.unwrap(), 0);
            }
            let heard = String::from_utf8(heard).unwrap();
            let key = heard.lines().find_map(|line| line.strip_prefix("idempotency-key: "));
            keys.send(key.unwrap_or_default().to_owned()).unwrap();
            let length = body.len();
            let answer = format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\n\r\n{body}");
            connection.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    (addr, asked)
}

#[tokio::test]
async fn pressing_again_after_no_answer_asks_for_nothing_twice() {
    let deployment = Deployment::start().await;
    let (api, mut keys) = forgetful_api().await;
    let viewer = Viewer::with(&deployment, "127.0.0.1:0", &[("API_URL", &api)]).await;
    let browser = Browser::start().await;
    browser.open(&viewer.url()).await;
    browser.press("#ask-form button").await;
    browser.says("#ask-note", "Press again: it is safe").await;
    browser.press("#ask-form button").await;
    browser.says("#ask-note", "Accepted as").await;
    browser.press("#life-close").await;
    browser.press("#ask-form button").await;
    browser.until("document.querySelector('#life').open").await;
    let first = keys.recv().await.unwrap();
    assert_eq!(first.len(), 32, "{first}");
    assert_eq!(keys.recv().await.unwrap(), first);
    assert_ne!(keys.recv().await.unwrap(), first);
}

#[tokio::test]
async fn the_largest_strings_have_room_in_the_list() {
    let deployment = Deployment::start().await;
    let _generator = deployment.run(Side::Generator, "generator", &[]).await;
    let _requestor = deployment.run(Side::Requestor, "requestor", &[("REQUEST_RATE", "0")]).await;
    let amount = Amount::new(64, 1024).unwrap();
    for _ in 0..8 {
        let (id, requestor) = (contract::RequestId::new(), "somebody".to_owned());
        let request = Request { id, amount, requestor, requested_at: workqueue::now() };
        deployment.publish(&request.publication(&Trace::default())).await;
        deployment.publish(&Fact::creation(&request)).await;
        let _: Received = deployment.fact_eventually(id).await;
    }
    let viewer = Viewer::start(&deployment).await;
    let browser = Browser::start().await;
    browser.open(&viewer.url()).await;
    let rows = "[...document.querySelectorAll('#last-rows button')].map(it => it.innerText)";
    let read = "row => !row.startsWith('on its way') && !row.startsWith('too large')";
    browser.until(&format!("{rows}.length === 8 && {rows}.every({read})")).await;
}

#[tokio::test]
async fn without_an_api_the_form_says_that_there_is_none() {
    let deployment = Deployment::start().await;
    let viewer = Viewer::start(&deployment).await;
    let browser = Browser::start().await;
    browser.open(&viewer.url()).await;
    browser.says("#ask-note", "API_URL").await;
    browser.until("document.querySelector('#ask-form button').disabled").await;
}
