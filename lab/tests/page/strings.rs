//! Asking for strings, and following them home.

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

#[tokio::test]
async fn without_an_api_the_form_says_that_there_is_none() {
    let deployment = Deployment::start().await;
    let viewer = Viewer::start(&deployment).await;
    let browser = Browser::start().await;
    browser.open(&viewer.url()).await;
    browser.says("#ask-note", "API_URL").await;
    browser.until("document.querySelector('#ask-form button').disabled").await;
}
