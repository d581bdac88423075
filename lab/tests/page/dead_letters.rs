//! Dead letters on the page: hostile content is only text, and letters can be replayed.

use async_nats::HeaderMap;
use contract::Amount;
use contract::facts::{Received, Stored};
use contract::queues::{REQUESTS, Request};
use testkit::eventually::eventually;
use testkit::process::logged;
use workqueue::dead_letters::{AT, STREAM, subject};
use workqueue::{JobId, topology};

use crate::browser::Browser;
use crate::deployment::{Deployment, Service, creation, publication, ready, succeeded};
use crate::gateway::GatewayProcess;

/// Text that would run scripts if it became HTML.
const HOSTILE: &str = "<script>window.hurt = 1</script><img src=x onerror='window.hurt = 2'>\
                       <a href=\"javascript:window.hurt = 3\">x</a>\u{202e}{{7*7}}</pre><style>*{display:none}</style>";

async fn request(deployment: &Deployment) -> Request {
    let amount = Amount::new(1, 8).unwrap();
    let requestor = HOSTILE.to_owned();
    let request = Request::new(JobId::new(), amount, requestor, workqueue::now());
    deployment.publish(&publication(&request)).await;
    request
}

#[tokio::test]
async fn hostile_text_in_a_message_is_only_text() {
    let deployment = Deployment::start().await;
    // A replica may have such a name, too.
    let name = [("INSTANCE", HOSTILE)];
    let _generator = deployment.run(Service::Generator, "generator", &name).await;
    let _requestor = deployment.run(Service::Requestor, "requestor", &name).await;
    let mut headers = HeaderMap::new();
    headers.insert("X-Hostile", HOSTILE.replace('\u{202e}', ""));
    let subject = REQUESTS.subject(JobId::new());
    deployment.publish_raw(&subject, headers, HOSTILE.as_bytes()).await;
    let came = request(&deployment).await;
    deployment.publish(&creation(&came)).await;
    let _: Received = deployment.fact_eventually(came.id).await;

    let gateway = GatewayProcess::start(&deployment).await;
    let browser = Browser::start().await;
    browser.open(&gateway.url()).await;
    browser.says("#letters pre", "<script>window.hurt = 1</script><img").await;
    browser.says("#letters .reason", "malformed").await;
    browser.press("#letters summary").await;
    browser.says("#letters details pre", "X-Hostile: <script>").await;
    browser.says("#generator .replica", "<script>window.hurt = 1</script>").await;
    browser.press("#last-rows button").await;
    browser.says("#history-steps", "by <script>window.hurt = 1").await;
    let made = "return [window.hurt ?? null, document.querySelectorAll(\
                'main script, main img, main a:not(#lesson a), main style, dialog script, dialog img, dialog a:not(#history-trace)').length]";
    assert_eq!(browser.run(made).await, serde_json::json!([null, 0]));
    assert_eq!(browser.complaints().await, [""; 0]);
}

#[tokio::test]
async fn dead_letters_are_replayed_one_by_one_or_all_at_once() {
    let deployment = Deployment::start().await;
    let clumsy = [("FAILURE_RATE", "1"), ("MAX_ATTEMPTS", "1")];
    let mut generator = deployment.run(Service::Generator, "clumsy", &clumsy).await;
    ready(&generator).await;
    let mut requests = Vec::new();
    for _ in 0..60 {
        requests.push(request(&deployment).await);
    }
    deployment.dead_letters(60).await;
    generator.terminate().unwrap();
    succeeded(&mut generator).await;

    let gateway = GatewayProcess::start(&deployment).await;
    let browser = Browser::start().await;
    browser.open(&gateway.url()).await;
    browser.says("#letters-note", "50 of 60").await;
    browser.press("#letters-more").await;
    browser.until("document.querySelectorAll('#letters-list > li').length === 60").await;
    // The focus moves from the button to the first of the further letters.
    browser.until("document.activeElement.id === 'letter-51'").await;
    let _generator = deployment.run(Service::Generator, "generator", &[]).await;
    let _requestor = deployment.run(Service::Requestor, "requestor", &[]).await;
    browser.press("#letter-1 > button").await;
    browser.says("#confirm-text", "Replay dead letter 1?").await;
    browser.press("#confirm-yes").await;
    let _: Received = deployment.fact_eventually(requests[0].id).await;
    browser.says("#number-dead_letters", "59").await;

    // The user presses it, cancels, and presses it again.
    browser.press("#replay-all").await;
    browser.press("#confirm-no").await;
    browser.press("#replay-all").await;
    browser.press("#confirm-yes").await;
    for request in &requests {
        let _: Received = deployment.fact_eventually(request.id).await;
    }
    browser.says("#letters-note", "There are no dead letters").await;
    assert_eq!(browser.complaints().await, [""; 0]);
}

#[tokio::test]
async fn replay_of_all_ends_if_each_message_dies_again() {
    let deployment = Deployment::start().await;
    let clumsy = [("FAILURE_RATE", "1"), ("MAX_ATTEMPTS", "1")];
    let _generator = deployment.run(Service::Generator, "clumsy", &clumsy).await;
    for _ in 0..60 {
        request(&deployment).await;
    }
    deployment.dead_letters(60).await;
    let gateway = GatewayProcess::start(&deployment).await;
    let browser = Browser::start().await;
    browser.open(&gateway.url()).await;
    browser.press("#replay-all").await;
    browser.press("#confirm-yes").await;
    browser.says("#replay-note", "Replayed 60.").await;
    browser.until("!document.querySelector('#replay-all').ariaDisabled").await;
    eventually("each message has died again", async || {
        let letters = topology::stream_state(deployment.nats(), STREAM).await.unwrap().state;
        match (letters.messages, letters.last_sequence) {
            (60, 120) => Ok(()),
            other => Err(other),
        }
    })
    .await;
    browser.says("#number-dead_letters", "60").await;
}

#[tokio::test]
async fn dead_letters_of_a_reason_are_listed_and_one_is_discarded() {
    let deployment = Deployment::start().await;
    let clumsy = [("FAILURE_RATE", "1"), ("MAX_ATTEMPTS", "1")];
    let _generator = deployment.run(Service::Generator, "clumsy", &clumsy).await;
    let died = request(&deployment).await;
    deployment.publish(&creation(&died)).await;
    deployment.dead_letters(1).await;
    deployment.publish_raw(&REQUESTS.subject(JobId::new()), HeaderMap::new(), b"x").await;
    deployment.dead_letters(2).await;
    let gateway = GatewayProcess::start(&deployment).await;
    logged(&gateway.process, "accepting requests").await;
    let browser = Browser::start().await;
    browser.open(&gateway.url()).await;
    browser.says("#letters-reasons", "malformed 1").await;
    browser.press("#letters-reasons button:nth-child(3)").await;
    browser.until("document.querySelectorAll('#letters-list > li').length === 1").await;
    browser.until("/^#.dead-letters\\?reason=(failed|malformed)$/.test(location.hash)").await;
    browser.client.refresh().await.unwrap();
    browser.until("document.querySelectorAll('#letters-list > li').length === 1").await;
    browser.client.back().await.unwrap();
    browser.until("document.querySelectorAll('#letters-list > li').length === 2").await;
    browser.press("#letters-reasons button:nth-child(1)").await;
    browser.press("#letter-1 > button:nth-of-type(2)").await;
    browser
        .says("#confirm-text", "An accepted request that depends on one of them is cancelled")
        .await;
    browser.press("#confirm-no").await;
    browser.press("#letter-1 > button:nth-of-type(2)").await;
    browser.press("#confirm-yes").await;
    browser.says("#replay-note", "Discarded 1.").await;
    browser.until("!document.querySelector('#letter-1')").await;
    assert!(matches!(deployment.fact(died.id).await, Some(Stored::Cancelled(_))));
    browser.until("document.activeElement.id === 'letter-2'").await;
    // Another client removes the other one.
    let stream = deployment.nats().get_stream(STREAM).await.unwrap();
    stream.delete_message(2).await.unwrap();
    browser.until("!document.querySelector('#letter-2')").await;
    browser.says("#letters-note", "There are no dead letters").await;
    assert_eq!(browser.complaints().await, [""; 0]);
}

/// Counts the requests for histories, and says how many there were.
const COUNT_LOOKS: &str = "
    const fetched = window.fetch;
    window.looks = 0;
    window.fetch = (url, ...more) => {
      if (String(url).includes('api/requests/')) window.looks += 1;
      return fetched(url, ...more);
    };";

#[tokio::test]
async fn history_that_a_person_reads_stays_as_it_is() {
    let deployment = Deployment::start().await;
    let clumsy = [("FAILURE_RATE", "1"), ("MAX_ATTEMPTS", "1")];
    let _generator = deployment.run(Service::Generator, "clumsy", &clumsy).await;
    let died = request(&deployment).await;
    deployment.dead_letters(1).await;
    let gateway = GatewayProcess::start(&deployment).await;
    let browser = Browser::start().await;
    browser.open(&format!("{}#/requests/{}", gateway.url(), died.id)).await;
    browser.says("#history-letters", "Dead letter").await;
    browser.press("#history-letters summary").await;
    browser.run(COUNT_LOOKS).await;
    browser.until("window.looks >= 2").await;
    browser.until("document.querySelector('#history-letters details').open").await;
}

#[tokio::test]
async fn new_dead_letters_leave_open_ones_unchanged() {
    let deployment = Deployment::start().await;
    let malformed = async || {
        deployment.publish_raw(&REQUESTS.subject(JobId::new()), HeaderMap::new(), b"x").await;
    };
    malformed().await;
    let _generator = deployment.run(Service::Generator, "generator", &[]).await;
    deployment.dead_letters(1).await;
    let gateway = GatewayProcess::start(&deployment).await;
    let browser = Browser::start().await;
    browser.open(&gateway.url()).await;
    browser.press("#letter-1 summary").await;
    malformed().await;
    malformed().await;
    browser.says("#letters-note", "1 of 3").await;
    browser.says("#letters-more", "Show the next ones (2)").await;
    browser.until("document.querySelector('#letter-1 details').open").await;
    browser.press("#letters-more").await;
    browser.until("document.querySelector('#letter-3')").await;
    browser.until("document.querySelector('#letter-1 details').open").await;
    // Another client removes one.
    let stream = deployment.nats().get_stream(STREAM).await.unwrap();
    stream.delete_message(2).await.unwrap();
    browser.until("!document.querySelector('#letter-2')").await;
    browser.until("document.querySelector('#letter-1 details').open").await;
}

#[tokio::test]
async fn dead_letter_has_its_date_if_its_time_is_one() {
    let deployment = Deployment::start().await;
    let gateway = GatewayProcess::start(&deployment).await;
    let browser = Browser::start().await;
    for at in ["2020-01-02T12:00:00Z", "long ago"] {
        let mut headers = HeaderMap::new();
        headers.insert(AT, at);
        deployment.publish_raw(&subject(REQUESTS.stream, "x"), headers, b"x").await;
    }
    browser.open(&gateway.url()).await;
    browser.says("#letter-1 .note", "dead-lettered at 02/01/2020 ").await;
    browser.says("#letter-2 .note", "dead-lettered at an unknown time").await;
}

#[tokio::test]
async fn buttons_are_hidden_without_permission_to_replay() {
    let deployment = Deployment::start().await;
    deployment.publish_raw(&REQUESTS.subject(JobId::new()), HeaderMap::new(), b"x").await;
    let _generator = deployment.run(Service::Generator, "generator", &[]).await;
    deployment.dead_letters(1).await;
    let gateway = GatewayProcess::with(&deployment, &[]).await;
    let browser = Browser::start().await;
    browser.open(&gateway.url()).await;
    browser.says("#letters .reason", "malformed").await;
    browser.until("document.querySelectorAll('#letters-list button').length === 0").await;
    browser.until("document.querySelector('#replay-all').hidden").await;
    let asked = "return fetch('dead-letters/1/replay', { method: 'POST', body: '{}', headers: \
                 { 'Content-Type': 'application/json' } }).then(answer => answer.status)";
    assert_eq!(browser.run(asked).await, 403);
}
