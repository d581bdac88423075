//! The addresses of dialogs and lists, and the keys.

use serde_json::json;
use testkit::http;
use testkit::process::logged;
use workqueue::JobId;

use crate::browser::Browser;
use crate::deployment::{Deployment, Service};
use crate::gateway::GatewayProcess;

#[tokio::test]
async fn history_has_an_address_that_reload_keeps_and_back_closes() {
    let deployment = Deployment::start().await;
    let gateway = GatewayProcess::start(&deployment).await;
    logged(&gateway.process, "accepting requests").await;
    let browser = Browser::start().await;
    browser.open(&gateway.url()).await;
    browser.press("#ask-form button").await;
    browser.says("#history", "It is in REQUESTS.").await;
    let id = browser.run("return document.querySelector('#history-id').textContent").await;
    let address = format!("{}#/requests/{}", gateway.url(), id.as_str().unwrap());
    assert_eq!(browser.run("return location.href").await, json!(address));
    browser.client.refresh().await.unwrap();
    browser.says("#history", "It is in REQUESTS.").await;
    browser.client.back().await.unwrap();
    browser.until("!document.querySelector('#history').open").await;
    browser.client.forward().await.unwrap();
    browser.says("#history-id", id.as_str().unwrap()).await;
    // A closed dialog is not open again after a reload.
    browser.press("#history-close").await;
    browser.until("location.hash === ''").await;
    browser.client.refresh().await.unwrap();
    browser.says("#status", "live").await;
    browser.until("!document.querySelector('#history').open").await;
}

/// Leaves the page without an answer about the history of a request.
const NO_HISTORY: &str = "
    window.fetched = window.fetch;
    window.fetch = (url, ...more) =>
      (String(url).startsWith('api/requests/') ? new Promise(() => {}) : window.fetched(url, ...more));";

#[tokio::test]
async fn request_is_cancelled_in_its_history() {
    let deployment = Deployment::start().await;
    let gateway = GatewayProcess::start(&deployment).await;
    logged(&gateway.process, "accepting requests").await;
    let browser = Browser::start().await;
    browser.open(&gateway.url()).await;
    browser.press("#ask-form button").await;
    browser.until("!document.querySelector('#history-cancel').hidden").await;
    // Until the history of another request is read, it cannot be cancelled.
    browser.run(NO_HISTORY).await;
    browser.run(&format!("location.hash = '#/requests/{}'", JobId::new())).await;
    browser.until("document.querySelector('#history-cancel').hidden").await;
    browser.run("window.fetch = window.fetched").await;
    browser.client.back().await.unwrap();
    browser.press("#history-cancel").await;
    browser.press("#confirm-yes").await;
    browser.says("#history-where", "It was cancelled at").await;
    browser.until("document.querySelector('#history-cancel').hidden").await;
    browser.press("#history-close").await;
    browser.says("#last-rows", "cancelled").await;
    browser.until("document.querySelector('#verdict').dataset.state === 'good'").await;
}

#[tokio::test]
async fn keys_show_the_help_the_theme_and_the_view_for_a_projector() {
    let deployment = Deployment::start().await;
    let gateway = GatewayProcess::start(&deployment).await;
    let browser = Browser::start().await;
    browser.resize(1280, 800).await;
    browser.open(&gateway.url()).await;
    browser.says("#status", "live").await;
    // They can be switched off, also for the next visit.
    browser.press("#tools button:nth-child(4)").await;
    browser.press("#keys-on").await;
    browser.press("#keys-close").await;
    browser.client.refresh().await.unwrap();
    browser.types("p").await;
    browser.until("!document.documentElement.classList.contains('projector')").await;
    browser.press("#tools button:nth-child(4)").await;
    browser.press("#keys-on").await;
    browser.press("#keys-close").await;
    browser.types("?").await;
    browser.says("#keys", "look up a request").await;
    browser.press("#keys-close").await;
    let names = ["one", "two", "three"].map(|name| [("INSTANCE", name)]);
    let mut replicas = Vec::new();
    for service in [Service::Requestor, Service::Generator] {
        for name in &names {
            replicas
                .push(deployment.run(service, &format!("{service:?}-{}", name[0].1), name).await);
        }
    }
    browser.until("document.querySelectorAll('.replica[data-state=ready]').length === 6").await;
    browser.types("p").await;
    // All of the flow and of the axis is on the screen.
    browser
        .until(
            "['#flow', '#axis'].every(it => document.querySelector(it).getBoundingClientRect().bottom <= innerHeight)",
        )
        .await;
    browser.types("p").await;
    browser.until("document.querySelector('#letters').checkVisibility()").await;
    for theme in ["light", "dark"] {
        browser.types("t").await;
        browser
            .until(&format!("getComputedStyle(document.documentElement).colorScheme === '{theme}'"))
            .await;
    }
    browser.client.refresh().await.unwrap();
    browser.until("document.documentElement.dataset.theme === 'dark'").await;
    // In a field, a letter is only text.
    browser.types("/").await;
    browser.types("p").await;
    browser.until("document.querySelector('#find').value === 'p'").await;
    assert_eq!(browser.complaints().await, [""; 0]);
}

#[tokio::test]
async fn requests_are_listed_by_state_and_open_their_history() {
    let deployment = Deployment::start().await;
    let gateway = GatewayProcess::start(&deployment).await;
    logged(&gateway.process, "accepting requests").await;
    let browser = Browser::start().await;
    browser.open(&gateway.url()).await;
    for _ in 0..2 {
        browser.press("#ask-form button").await;
        browser.says("#history", "It is in REQUESTS.").await;
        browser.press("#history-close").await;
        browser.until("!document.querySelector('#history').open").await;
    }
    browser.press("#last-rows button").await;
    browser.press("#history-cancel").await;
    browser.press("#confirm-yes").await;
    browser.says("#history-where", "It was cancelled at").await;
    browser.press("#history-close").await;
    let list_cancelled = async || {
        browser.run("document.querySelector('#requests-status').value = 'cancelled'").await;
        browser.press("#requests-form button").await;
        browser.says("#requests-note", "1 request,").await;
    };
    list_cancelled().await;
    browser.client.back().await.unwrap();
    browser.says("#requests-note", "2 requests").await;
    browser.until("document.querySelector('#requests-status').value === ''").await;
    browser.press("#requests-form button").await;
    browser.until("location.hash === '#/requests?'").await;
    list_cancelled().await;
    browser.press("#requests-rows button").await;
    browser.says("#history-where", "It was cancelled at").await;
    // The list has an address, to which closing the history returns.
    browser.press("#history-close").await;
    browser.until("location.hash === '#/requests?status=cancelled'").await;
    browser.client.refresh().await.unwrap();
    browser.says("#requests-note", "1 request,").await;
    browser.until("document.querySelector('#requests-status').value === 'cancelled'").await;
    browser.write("#requests-by", "nobody").await;
    browser.press("#requests-form button").await;
    browser.says("#requests-note", "There are none.").await;
    assert_eq!(browser.complaints().await, [""; 0]);
}

#[tokio::test]
async fn lesson_beside_a_list_leaves_it_as_it_is() {
    let deployment = Deployment::start().await;
    let gateway = GatewayProcess::start(&deployment).await;
    logged(&gateway.process, "accepting requests").await;
    let headers = [("Content-Type", "application/json")];
    let answer = http::ask(gateway.addr, "POST", "/requests", &headers, "{}").await.unwrap();
    assert_eq!(answer.status, 202, "{answer:?}");
    let browser = Browser::start().await;
    browser.open(&format!("{}#/requests?status=queued", gateway.url())).await;
    browser.says("#requests-note", "1 request,").await;
    browser.run("document.querySelector('#requests-rows tr').dataset.same = 'yes'").await;
    browser.press("#tools button:nth-child(1)").await;
    browser.press("#lesson-body li:nth-child(2) a").await;
    browser.until("location.hash === '#/lessons/1'").await;
    browser.press("#lesson-close").await;
    browser.until("document.querySelector('#lesson').hidden").await;
    browser.until("location.hash === '#/requests?status=queued'").await;
    browser.until("document.querySelector('#requests-status').value === 'queued'").await;
    // It is not read again, so it keeps all of its pages.
    browser.until("document.querySelector('#requests-rows tr').dataset.same === 'yes'").await;
    browser.press("#requests-form button").await;
    browser.until("!document.querySelector('#requests-rows tr').dataset.same").await;
    assert_eq!(browser.complaints().await, [""; 0]);
}

#[tokio::test]
async fn scheduled_requests_are_listed_page_by_page_and_cancelled() {
    let deployment = Deployment::start().await;
    let gateway = GatewayProcess::start(&deployment).await;
    logged(&gateway.process, "accepting requests").await;
    let headers = [("Content-Type", "application/json")];
    for _ in 0..30 {
        let body = r#"{"delay": "30d"}"#;
        let answer = http::ask(gateway.addr, "POST", "/requests", &headers, body).await.unwrap();
        assert_eq!(answer.status, 202, "{answer:?}");
    }
    let browser = Browser::start().await;
    browser.open(&format!("{}#/requests?status=scheduled", gateway.url())).await;
    browser.says("#requests-note", "25 requests").await;
    // A later choice applies to the next list.
    browser.run("document.querySelector('#requests-priority').value = 'low'").await;
    browser.press("#requests-more").await;
    browser.says("#requests-note", "30 requests").await;
    browser.until("document.querySelector('#requests-more').hidden").await;
    // The focus moves from the button to the first of the further requests.
    browser
        .until("document.activeElement === document.querySelectorAll('#requests-rows button')[25]")
        .await;
    browser.says("#requests-rows", "due ").await;
    browser.press("#requests-rows button").await;
    browser.says("#history-where", "It is due on").await;
    browser.press("#history-cancel").await;
    browser.press("#confirm-no").await;
    browser.press("#history-cancel").await;
    browser.press("#confirm-yes").await;
    browser.says("#history-where", "It was cancelled at").await;
    browser.press("#history-close").await;
    browser.says("#scheduled", "SCHEDULES: 29 not due yet").await;
    assert_eq!(browser.complaints().await, [""; 0]);
}
