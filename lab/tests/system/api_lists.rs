//! Lists of requests over HTTP: filters, stable pages, and entity tags.

use std::net::SocketAddr;

use async_nats::HeaderMap;
use contract::facts::{Received, Stored};
use contract::queues::{REQUESTS, Request};
use futures_util::StreamExt;
use observe::requests::MOST_READ;
use serde_json::{Value, json};
use testkit::http;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use workqueue::{JobId, Priority, now};

use crate::api::{accepted, gateway, get, post};
use crate::deployment::{Deployment, PATIENT, Service, creation, soon, succeeded};
use crate::foreign_messages::acknowledgment;
use crate::later;
use crate::round_trips::request;

/// The ids on a page, and the path of the next one.
async fn page(api: SocketAddr, path: &str) -> (Vec<String>, Option<String>) {
    let answer = get(api, path).await;
    assert_eq!(answer.status, 200, "{path}: {answer:?}");
    let list = answer.json();
    let ids = list["requests"].as_array().unwrap();
    let ids = ids.iter().map(|request| request["id"].as_str().unwrap().to_owned()).collect();
    let next = list["next"].as_str().map(|next| format!("{path}&cursor={next}"));
    (ids, next)
}

/// Creates the fact that a request of this priority is accepted, without its message, so that no worker handles it.
async fn accept(deployment: &Deployment, priority: Priority) -> Request {
    let request = Request { priority, ..request() };
    deployment.publish(&creation(&request)).await;
    request
}

#[tokio::test]
async fn pages_are_stable_while_requests_come() {
    let deployment = Deployment::with(&PATIENT).await;
    let (_gateway, api) = gateway(&deployment, "gateway").await;
    let mut asked = Vec::new();
    for _ in 0..7 {
        asked.push(accept(&deployment, Priority::Normal).await.id.to_string());
    }
    asked.reverse();
    let (mut seen, mut next) = page(api, "/requests?limit=3").await;
    while let Some(path) = next {
        accept(&deployment, Priority::Normal).await;
        // Each page may have another size.
        let (_, cursor) = path.rsplit_once('=').unwrap();
        let (ids, after) = page(api, &format!("/requests?limit=2&cursor={cursor}")).await;
        seen.extend(ids);
        next = after;
    }
    assert_eq!(seen, asked);
}

#[tokio::test]
async fn list_has_only_requests_that_match_its_filter() {
    let deployment = Deployment::start().await;
    let (_gateway, api) = gateway(&deployment, "gateway").await;
    let queued = accept(&deployment, Priority::Low).await;
    let stored = accept(&deployment, Priority::Low).await;
    deployment.publish(&creation(&Stored::Strings(acknowledgment(&stored, "aaaa")))).await;
    let doubled = accept(&deployment, Priority::High).await;
    deployment.publish(&creation(&Stored::Strings(acknowledgment(&doubled, "aaaa")))).await;
    let values = acknowledgment(&doubled, "bbbb").values;
    let received =
        Received { id: doubled.id, values, marked_by: "x".to_owned(), received_at: now() };
    deployment.publish(&creation(&received)).await;
    let id = |request: &Request| vec![request.id.to_string()];
    for (query, ids) in [
        ("status=queued", id(&queued)),
        ("status=stored", id(&stored)),
        ("status=doubled", id(&doubled)),
        ("status=received", vec![]),
        ("status=dead-lettered", vec![]),
        ("priority=high", id(&doubled)),
        ("priority=low&status=stored", id(&stored)),
        ("priority=high&status=stored", vec![]),
        ("requested_by=hand&status=queued", id(&queued)),
        ("requested_by=somebody", vec![]),
    ] {
        let (found, _) = page(api, &format!("/requests?{query}")).await;
        assert_eq!(found, ids, "{query}");
    }
    let (first, next) = page(api, "/requests?priority=low&limit=1").await;
    assert_eq!(first, id(&stored));
    assert_eq!(page(api, &next.unwrap()).await.0, id(&queued));
    // A person finds the same by the broker alone.
    let (status, said) =
        deployment.decoupled(["requests", "list", "--status=stored", "--json"]).await;
    assert_eq!(status, Some(0), "{said}");
    let said: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(said["requests"][0]["id"], json!(stored.id), "{said}");
    let (_, said) = deployment.decoupled(["requests", "list", "--priority=high"]).await;
    assert!(said.contains(&format!("{}  doubled", doubled.id)), "{said}");
}

#[tokio::test]
async fn scheduled_requests_have_a_list_of_their_own() {
    let deployment = Deployment::with(&PATIENT).await;
    let (_gateway, api) = gateway(&deployment, "gateway").await;
    let mut ids = Vec::new();
    for priority in ["low", "high", "low"] {
        let answer = post(api, None, &json!({"delay": "1h", "priority": priority})).await;
        let after: u32 = answer.header("retry-after").unwrap().parse().unwrap();
        assert!((3000..=3601).contains(&after), "{answer:?}");
        ids.insert(0, accepted(&answer).to_string());
        // The recurring schedule has fired more often than the number of requests that are read for a page.
        let mut firing = None;
        for _ in 0..=MOST_READ {
            firing = Some(deployment.nats().publish("due.every.second", "".into()).await.unwrap());
        }
        firing.unwrap().await.unwrap();
    }
    // A recurring schedule is no request before it is due.
    let every_year = json!({"cron": "0 0 0 1 1 *"});
    assert_eq!(later::put(api, "yearly", &every_year).await.status, 201);
    assert_eq!(page(api, "/requests?limit=9").await, (vec![], None));
    let (first, next) = page(api, "/requests?status=scheduled&limit=2").await;
    assert_eq!(first, ids[..2]);
    assert_eq!(page(api, &next.unwrap()).await, (ids[2..].to_vec(), None));
    // If just as many are left as fit on a page, it is the last one.
    assert_eq!(page(api, "/requests?status=scheduled&limit=3").await, (ids.clone(), None));
    let (low, _) = page(api, "/requests?status=scheduled&priority=low").await;
    assert_eq!(low, [ids[0].clone(), ids[2].clone()]);
    // A due request that is not submitted, because no requestor runs, is still among them.
    let due = accepted(&post(api, None, &json!({"delay": "1ms"})).await).to_string();
    let (first, _) = page(api, "/requests?status=scheduled&limit=1").await;
    assert_eq!(first, [due]);
    let list = ["requests", "list", "--status=scheduled", "--requested-by=gateway", "--json"];
    let (status, said) = deployment.decoupled(list).await;
    assert_eq!(status, Some(0), "{said}");
    let said: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(said["requests"].as_array().unwrap().len(), 4, "{said}");
    assert_eq!(said["requests"][0]["status"], "scheduled", "{said}");
}

#[tokio::test]
async fn error_for_a_wrong_cursor_or_filter_names_a_right_one() {
    let deployment = Deployment::with(&PATIENT).await;
    let (_gateway, api) = gateway(&deployment, "gateway").await;
    for _ in 0..2 {
        accept(&deployment, Priority::Low).await;
    }
    let (_, next) = page(api, "/requests?priority=low&limit=1").await;
    let cursor = next.unwrap().rsplit_once('=').unwrap().1.to_owned();
    let wrong = async |path: &str, said: &str| {
        let answer = get(api, path).await;
        let status = if path.contains("cursor=") { 409 } else { 400 };
        assert_eq!(answer.status, status, "{path}: {answer:?}");
        assert!(answer.body.contains(said), "{path}: {answer:?}");
    };
    wrong("/requests?cursor=7", "write the `next` of the page before").await;
    wrong("/requests?cursor=", "write the `next` of the page before").await;
    wrong(&format!("/requests?cursor={cursor}"), "priority=low").await;
    wrong(&format!("/requests?priority=high&cursor={cursor}"), "priority=low").await;
    wrong("/requests?status=done", "the statuses are scheduled, queued, stored").await;
    wrong("/requests?priority=urgent", "the priorities are high, normal and low").await;
    // The store of the cursor is lost.
    deployment.nats().delete_stream(contract::facts::REQUESTED.stream).await.unwrap();
    deployment.declare(&PATIENT).await;
    wrong(&format!("/requests?priority=low&cursor={cursor}"), "is gone").await;
}

#[tokio::test]
async fn search_for_a_rare_status_is_bounded() {
    let deployment = Deployment::with(&PATIENT).await;
    let (_gateway, api) = gateway(&deployment, "gateway").await;
    let rare = accept(&deployment, Priority::Low).await;
    let most = observe::requests::MOST_READ;
    let accepting = (0..most).map(async |_| accept(&deployment, Priority::High).await);
    futures_util::stream::iter(accepting).buffer_unordered(64).collect::<Vec<Request>>().await;
    let (none, next) = page(api, "/requests?priority=low").await;
    assert_eq!(none, [""; 0]);
    let (found, next) = page(api, &next.expect("there is more to look at")).await;
    assert_eq!((found, next), (vec![rare.id.to_string()], None));
}

#[tokio::test]
async fn unchanged_request_is_not_sent_again() {
    let deployment = Deployment::with(&PATIENT).await;
    let (_gateway, api) = gateway(&deployment, "gateway").await;
    let answer = post(api, None, &json!({})).await;
    assert_eq!(
        (answer.header("retry-after"), &answer.json()["status"]),
        (Some("1"), &json!("queued"))
    );
    let id = accepted(&answer);
    let path = format!("/requests/{id}");
    let answer = get(api, &path).await;
    assert_eq!((answer.status, answer.header("retry-after")), (200, None), "{answer:?}");
    let tag = answer.header("etag").unwrap().to_owned();
    let headers = [("If-None-Match", tag.as_str())];
    let ask = async || http::ask(api, "GET", &path, &headers, "").await.unwrap();
    let again = ask().await;
    assert_eq!((again.status, again.body.as_str(), again.header("etag")), (304, "", Some(&*tag)));
    let request: Request = deployment.fact(id).await.unwrap();
    deployment.publish(&creation(&Stored::Strings(acknowledgment(&request, "aaaa")))).await;
    let changed = ask().await;
    assert_eq!((changed.status, &changed.json()["status"]), (200, &json!("stored")), "{changed:?}");
    assert_ne!(changed.header("etag"), Some(&*tag));
}

/// A client that follows a request, and the events that it has got.
struct Follower(TcpStream, String);

impl Follower {
    async fn start(api: SocketAddr, id: JobId, seen: Option<&str>) -> Self {
        Self::of(api, &format!("/requests/{id}/events"), seen).await
    }

    /// Reads the events at this path.
    async fn of(api: SocketAddr, path: &str, seen: Option<&str>) -> Self {
        let mut stream = TcpStream::connect(api).await.unwrap();
        let seen = seen.map(|seen| format!("Last-Event-ID: {seen}\r\n")).unwrap_or_default();
        let head = format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n{seen}\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        Self(stream, String::new())
    }

    async fn hear(&mut self, text: &str) {
        let hearing = async {
            while !self.1.contains(text) {
                let mut some = [0; 4096];
                let length = self.0.read(&mut some).await.unwrap();
                assert_ne!(length, 0, "it has ended without {text}: {}", self.1);
                self.1.push_str(str::from_utf8(&some[..length]).unwrap());
            }
        };
        soon(text, hearing).await;
    }

    /// All events, once the stream has ended.
    async fn end(mut self) -> String {
        soon("it ends", self.0.read_to_string(&mut self.1)).await.unwrap();
        self.1
    }
}

/// The values of the lines of this name.
fn lines<'a>(heard: &'a str, name: &str) -> Vec<&'a str> {
    heard.lines().filter_map(|line| line.strip_prefix(name)).collect()
}

#[tokio::test]
async fn follower_gets_each_state_until_the_end() {
    let deployment = Deployment::start().await;
    let (_gateway, api) = gateway(&deployment, "gateway").await;
    let id = accepted(&post(api, None, &json!({ "count": 2 })).await);
    let mut follower = Follower::start(api, id, None).await;
    follower.hear("\"queued\"").await;
    let reconnected = Follower::start(api, id, Some(lines(&follower.1, "id: ")[0])).await;
    let _generator = deployment.run(Service::Generator, "generator", &[]).await;
    let _requestor = deployment.run(Service::Requestor, "requestor", &[]).await;
    // A client that has got a state does not get it again.
    let later = reconnected.end().await;
    assert!(later.contains("\"received\"") && !later.contains("\"queued\""), "{later}");
    let heard = follower.end().await;
    assert!(heard.starts_with("HTTP/1.") && heard.contains(" 200 OK\r\n"), "{heard}");
    assert!(heard.contains("content-type: text/event-stream\r\n"), "{heard}");
    assert!(heard.contains("x-accel-buffering: no\r\n"), "{heard}");
    let data: Vec<Value> =
        lines(&heard, "data: ").iter().map(|data| serde_json::from_str(data).unwrap()).collect();
    let states: Vec<&str> = data.iter().map(|state| state["status"].as_str().unwrap()).collect();
    // It may be marked before the gateway has read that it is stored.
    assert!(
        states == ["queued", "stored", "received"] || states == ["queued", "received"],
        "{heard}"
    );
    assert_eq!(data.last().unwrap()["values"].as_array().unwrap().len(), 2);
    assert_eq!(lines(&heard, "retry: ").len(), data.len());
    let ids = lines(&heard, "id: ");
    assert_eq!(ids.len(), data.len());
    // A client that has got the last event does not reconnect again.
    let again = Follower::start(api, id, ids.last().copied()).await.end().await;
    assert!(again.contains(" 204 No Content\r\n"), "{again}");
    let missed = Follower::start(api, id, Some(ids[0])).await.end().await;
    assert_eq!(lines(&missed, "id: "), [*ids.last().unwrap()]);
    let tag = get(api, &format!("/requests/{id}")).await;
    assert_eq!(tag.header("etag"), Some(format!("\"{}\"", ids.last().unwrap()).as_str()));
}

#[tokio::test]
async fn follower_of_a_dead_lettered_request_gets_the_reason() {
    let deployment = Deployment::start().await;
    let (_gateway, api) = gateway(&deployment, "gateway").await;
    let id = accepted(&post(api, None, &json!({})).await);
    let mut follower = Follower::start(api, id, None).await;
    follower.hear("\"queued\"").await;
    let clumsy = [("FAILURE_RATE", "1"), ("MAX_ATTEMPTS", "1")];
    let _generator = deployment.run(Service::Generator, "clumsy", &clumsy).await;
    let heard = follower.end().await;
    let data = lines(&heard, "data: ");
    let last: Value = serde_json::from_str(data.last().unwrap()).unwrap();
    assert_eq!(last["status"], "dead-lettered", "{heard}");
    assert!(last["dead_letter"]["reason"].as_str().unwrap().starts_with("failed"), "{heard}");
    let unknown = Follower::start(api, JobId::new(), None).await.end().await;
    assert!(unknown.contains(" 404 Not Found\r\n"), "{unknown}");
}

#[tokio::test]
async fn step_of_a_lesson_keeps_its_baseline_over_a_reconnect() {
    // It is done once there are more dead letters than at its beginning.
    const STEP: &str = "/api/lessons/5/steps/1";
    let deployment = Deployment::with(&PATIENT).await;
    let (_gateway, api) = gateway(&deployment, "gateway").await;
    let mut follower = Follower::of(api, STEP, None).await;
    follower.hear("\n\n").await;
    let baseline = lines(&follower.1, "id: ")[0].to_owned();
    assert_eq!(baseline, r#"{"totals":{"dead_letters":0}}"#);
    drop(follower);
    let subject = workqueue::dead_letters::subject(REQUESTS.stream, "x");
    deployment.publish_raw(&subject, HeaderMap::new(), b"x").await;
    Follower::of(api, STEP, None).await.hear("dead letters 1").await;
    let heard = Follower::of(api, STEP, Some(&baseline)).await.end().await;
    assert_eq!(lines(&heard, "event: "), ["done"], "{heard}");
    // What is no baseline of this step counts as none.
    let mut anew = Follower::of(api, STEP, Some(r#"{"totals":{"stored":0}}"#)).await;
    anew.hear("\n\n").await;
    assert_eq!(lines(&anew.1, "event: "), ["state"], "{}", anew.1);
}

#[tokio::test]
async fn followers_are_bounded_and_end_with_the_gateway() {
    let deployment = Deployment::with(&PATIENT).await;
    let (mut gateway, api) = gateway(&deployment, "gateway").await;
    let id = accepted(&post(api, None, &json!({})).await);
    let mut followers = Vec::new();
    for _ in 0..64 {
        let mut follower = Follower::start(api, id, None).await;
        follower.hear("\"queued\"").await;
        followers.push(follower);
    }
    let busy = get(api, &format!("/requests/{id}/events")).await;
    assert_eq!((busy.status, busy.header("retry-after")), (503, Some("1")), "{busy:?}");
    // Other requests are answered, and a follower that leaves makes room.
    assert_eq!(get(api, &format!("/requests/{id}?wait=1ms")).await.status, 200);
    assert_eq!(deployment.depth(REQUESTS).await, 1);
    gateway.terminate().unwrap();
    for follower in followers {
        let heard = follower.end().await;
        assert_eq!(lines(&heard, "data: ").len(), 1, "{heard}");
    }
    succeeded(&mut gateway).await;
}
