//! The input that the HTTP API accepts and refuses, compared with its description.

use std::net::SocketAddr;

use contract::facts::{IDEMPOTENCY, REQUESTED};
use jsonschema::Validator;
use serde_json::{Value, json};
use testkit::http::{self, HttpResponse};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use workqueue::JobId;

use crate::api::{accepted, gateway, get, post};
use crate::deployment::{Deployment, PATIENT, admin, soon};

const JSON: (&str, &str) = ("Content-Type", "application/json");

type HeaderPairs<'a> = &'a [(&'a str, &'a str)];

/// The description, as a gateway serves it.
struct ApiDescription(Value);

impl ApiDescription {
    async fn of(api: SocketAddr) -> Self {
        Self(get(api, "/openapi.json").await.json())
    }

    /// The schema at this pointer.
    fn schema(&self, pointer: &str) -> Validator {
        let mut root = self.0.clone();
        let pointer = pointer.replace('{', "%7B").replace('}', "%7D");
        root["$ref"] = format!("#{pointer}").into();
        jsonschema::draft202012::new(&root).unwrap()
    }

    /// Asserts that the description allows this answer of the route.
    fn holds(&self, method: &str, route: &str, answer: &HttpResponse) {
        let escaped = route.replace('/', "~1");
        let status = answer.status;
        let pointer = format!("/paths/{escaped}/{method}/responses/{status}");
        let described = self.0.pointer(&pointer);
        let described =
            described.unwrap_or_else(|| panic!("{pointer} is not described: {answer:?}"));
        let content = described["content"].as_object().unwrap();
        let (media, _) = content.iter().next().unwrap();
        assert_eq!(answer.header("content-type"), Some(media.as_str()), "{answer:?}");
        let media = media.replace('/', "~1");
        let schema = self.schema(&format!("{pointer}/content/{media}/schema"));
        if let Err(error) = schema.validate(&answer.json()) {
            panic!("{error}: {answer:?}");
        }
        for header in described["headers"].as_object().into_iter().flat_map(|all| all.keys()) {
            assert!(answer.header(&header.to_lowercase()).is_some() || status == 503, "{answer:?}");
        }
    }
}

fn is_a_problem(answer: &HttpResponse, status: u16) {
    assert_eq!(answer.status, status, "{answer:?}");
    assert_eq!(answer.header("content-type"), Some("application/problem+json"), "{answer:?}");
    assert_eq!(answer.header("cache-control"), Some("no-store"), "{answer:?}");
    let problem = answer.json();
    assert_eq!(problem["status"], status, "{answer:?}");
    for member in ["type", "title", "detail"] {
        assert!(!problem[member].as_str().unwrap().is_empty(), "{answer:?}");
    }
}

#[tokio::test]
async fn wrong_request_is_a_described_problem_and_publishes_nothing() {
    let deployment = Deployment::with(&PATIENT).await;
    let (_gateway, api) = gateway(&deployment, "gateway").await;
    let description = ApiDescription::of(api).await;
    let (long, large) = ("ä".repeat(256), format!("{{{}}}", " ".repeat(5_000)));
    let key = |key| ("Idempotency-Key", key);
    let cases: &[(u16, HeaderPairs<'_>, &str)] = &[
        (400, &[JSON], "null"),
        (400, &[JSON], "[1, 64]"),
        (400, &[JSON], "{"),
        (400, &[JSON], r#"{"count": 0}"#),
        (400, &[JSON], r#"{"count": "1"}"#),
        (400, &[JSON], r#"{"count": 1.5}"#),
        (400, &[JSON], r#"{"count": 1001}"#),
        (400, &[JSON], r#"{"length": 1025}"#),
        (400, &[JSON], r#"{"count": 65, "length": 1024}"#),
        (400, &[JSON], r#"{"cuont": 1}"#),
        (400, &[JSON, key("")], "{}"),
        (400, &[JSON, key(&long)], "{}"),
        (400, &[JSON, key("one"), key("two")], "{}"),
        (403, &[JSON, ("Origin", "https://elsewhere.example")], "{}"),
        (403, &[("Sec-Fetch-Site", "cross-site")], ""),
        (413, &[JSON], &large),
        (415, &[], "{}"),
        (415, &[("Content-Type", "text/plain")], "{}"),
        (415, &[("Content-Type", "application/json; charset=utf-16")], "{}"),
        (415, &[JSON, ("Content-Encoding", "gzip")], "{}"),
        (400, &[JSON, ("Host", "elsewhere.example")], "{}"),
        (417, &[JSON, ("Expect", "a-miracle")], "{}"),
        (415, &[("Content-Type", "application/x-www-form-urlencoded")], "count=1"),
    ];
    for (status, headers, body) in cases {
        let answer = http::ask(api, "POST", "/requests", headers, body).await.unwrap();
        is_a_problem(&answer, *status);
        description.holds("post", "/requests", &answer);
    }
    is_a_problem(&http::ask(api, "POST", "/requests?count=1", &[], "").await.unwrap(), 400);
    for (status, path) in [
        (400, "/requests?limit=0"),
        (400, "/requests?limit=1001"),
        (400, "/requests?limit=1&limit=1"),
        (400, "/requests?offset=1"),
        (400, "/requests/b5bb9d80-14a0-4f9b-9c61-2f1d1d5b5c5a"),
        (400, "/requests/..%2f"),
        (400, "/requests/%ff"),
        (400, "/requests/019CADD3-8896-7938-BC36-C32D4D2563A7"),
        (400, "/requests/019cadd3-8896-7938-bc36-c32d4d2563a7?wait=61s"),
        (400, "/requests/019cadd3-8896-7938-bc36-c32d4d2563a7?wait=soon"),
        (404, "/requests/019cadd3-8896-7938-bc36-c32d4d2563a7"),
        (404, "/requests/019cadd3-8896-7938-bc36-c32d4d2563a7/events"),
        (400, "/requests/019cadd3-8896-7938-bc36-c32d4d2563a7/events?wait=1s"),
        (400, "/requests?status=done"),
        (409, "/requests?cursor=7"),
        (404, "/queues/OTHER"),
        (400, "/queues?limit=1"),
        (400, "/dead-letters?reason=odd"),
        (404, "/dead-letters/7"),
        (400, "/dead-letters/+7"),
        (400, "/openapi.json?pretty"),
    ] {
        let answer = get(api, path).await;
        is_a_problem(&answer, status);
        let route = match path.split('?').next().unwrap() {
            "/requests" => "/requests",
            "/queues" => "/queues",
            "/queues/OTHER" => "/queues/{name}",
            "/dead-letters" => "/dead-letters",
            "/dead-letters/7" | "/dead-letters/+7" => "/dead-letters/{sequence}",
            path if path.ends_with("/events") => "/requests/{id}/events",
            "/openapi.json" => "/openapi.json",
            _ => "/requests/{id}",
        };
        description.holds("get", route, &answer);
    }
    for path in ["/requests/", "/requests/a/b", "/Requests", "/livez", "/metrics", "/index.html"] {
        is_a_problem(&get(api, path).await, 404);
    }
    for path in ["/api/lessons/%ff", "/api/lessons/5/steps/%ff"] {
        is_a_problem(&get(api, path).await, 400);
    }
    let id = format!("/requests/{}", JobId::new());
    for (method, path, allow) in [
        ("DELETE", "/requests", "GET, HEAD, POST"),
        ("OPTIONS", "/requests", "GET, HEAD, POST"),
        ("PUT", "/openapi.json", "GET, HEAD"),
        ("POST", id.as_str(), "DELETE, GET, HEAD"),
        ("BREW", "/requests", "GET, HEAD, POST"),
    ] {
        let answer = http::ask(api, method, path, &[], "").await.unwrap();
        is_a_problem(&answer, 405);
        let mut allowed: Vec<&str> =
            answer.header("allow").unwrap().split(',').map(str::trim).collect();
        allowed.sort_unstable();
        assert_eq!(allowed.join(", "), allow, "{method} {path}");
    }
    assert_eq!(deployment.facts(REQUESTED).await, 0);
    assert_eq!(deployment.facts(IDEMPOTENCY).await, 0);
}

#[tokio::test]
async fn right_requests_are_answered_as_described() {
    let deployment = Deployment::with(&PATIENT).await;
    let (gateway, api) = gateway(&deployment, "gateway").await;
    let description = ApiDescription::of(api).await;
    assert_eq!(description.0["openapi"], "3.1.0");
    let body = description.schema("/components/schemas/NewRequest");
    let bodies = [
        json!({}),
        json!({"count": 1, "length": 1}),
        json!({"count": 64, "length": 1024}),
        json!({"count": 1000, "length": 65}),
        json!({"count": 255, "length": 257}),
    ];
    for wanted in bodies {
        assert!(body.is_valid(&wanted), "{wanted}");
        let answer = post(api, None, &wanted).await;
        accepted(&answer);
        description.holds("post", "/requests", &answer);
    }
    // Without a body, and without headers about one.
    let answer = http::ask(api, "POST", "/requests", &[], "").await.unwrap();
    let id = accepted(&answer);
    assert_eq!((&answer.json()["count"], &answer.json()["length"]), (&json!(1), &json!(64)));
    for (path, route) in [
        ("/requests", "/requests"),
        ("/requests?limit=1", "/requests"),
        ("/requests?status=queued&priority=normal", "/requests"),
        ("/queues", "/queues"),
        ("/queues/RESPONSES", "/queues/{name}"),
        ("/dead-letters?reason=failed&queue=REQUESTS", "/dead-letters"),
        (&format!("/requests/{id}"), "/requests/{id}"),
        (&format!("/requests/{id}?wait=0s"), "/requests/{id}"),
        ("/openapi.json", "/openapi.json"),
    ] {
        let answer = get(api, path).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        description.holds("get", route, &answer);
        let head = http::ask(api, "HEAD", path, &[], "").await.unwrap();
        assert_eq!((head.status, head.body.as_str()), (200, ""));
    }
    let (_, metrics) = admin(&gateway, "/metrics").await;
    let counted = r#"gateway_api_requests_total{method="POST",route="/requests",status="202"} 6"#;
    assert!(metrics.contains(counted), "{metrics}");
    assert!(!metrics.contains(&id.to_string()), "{metrics}");
}

#[tokio::test]
async fn description_has_each_limit_of_an_amount() {
    let deployment = Deployment::with(&PATIENT).await;
    let (_gateway, api) = gateway(&deployment, "gateway").await;
    let schema = ApiDescription::of(api).await.schema("/components/schemas/NewRequest");
    for count in 0..=1001 {
        let limit = 65_536_u32.checked_div(count).unwrap_or(1).min(1024);
        for length in [0, 1, limit, limit + 1] {
            let is_one = contract::Amount::new(count, length).is_ok();
            let body = json!({"count": count, "length": length});
            assert_eq!(schema.is_valid(&body), is_one, "{body}");
        }
    }
}

#[tokio::test]
async fn ambiguous_request_is_refused() {
    let deployment = Deployment::with(&PATIENT).await;
    let (_gateway, api) = gateway(&deployment, "gateway").await;
    let description = ApiDescription::of(api).await;
    for (status, head) in [
        (400, "POST /requests HTTP/1.1\r\nContent-Length: 2"),
        (
            403,
            "POST http://elsewhere.example/requests HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2",
        ),
        (501, "POST /requests HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip, chunked"),
    ] {
        let mut client = TcpStream::connect(api).await.unwrap();
        let request = format!("{head}\r\nConnection: close\r\n\r\n{{}}");
        client.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        // Unread bytes may end the connection with a reset.
        let _ = soon("an answer", client.read_to_end(&mut answer)).await;
        let answer = HttpResponse::read(&answer).unwrap();
        is_a_problem(&answer, status);
        description.holds("post", "/requests", &answer);
    }
    assert_eq!(deployment.facts(REQUESTED).await, 0);
}

#[tokio::test]
async fn connection_carries_several_requests_and_limits_each_body() {
    let deployment = Deployment::with(&PATIENT).await;
    let (_gateway, api) = gateway(&deployment, "gateway").await;
    let mut client = TcpStream::connect(api).await.unwrap();
    let head = "POST /requests HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
                Transfer-Encoding: chunked\r\n\r\n";
    let small = format!("{head}1\r\n{{\r\n1\r\n}}\r\n0\r\n\r\n");
    let large = format!("{head}1000\r\n{}\r\n1\r\n \r\n", " ".repeat(0x1000));
    client.write_all([small.as_str(), &small, &large].concat().as_bytes()).await.unwrap();
    let mut answers = Vec::new();
    // Unread bytes of the last request may end the connection with a reset.
    let _ = soon("they are answered", client.read_to_end(&mut answers)).await;
    let answers = String::from_utf8(answers).unwrap();
    let statuses: Vec<&str> = answers
        .split("HTTP/1.1 ")
        .skip(1)
        .map(|answer| answer.split(' ').next().unwrap())
        .collect();
    assert_eq!(statuses, ["202", "202", "413"], "{answers}");
}

#[tokio::test]
async fn buttons_of_the_page_work_for_the_page_alone() {
    let deployment = Deployment::with(&PATIENT).await;
    let (_gateway, api) = gateway(&deployment, "gateway").await;
    let site = |site| ("Sec-Fetch-Site", site);
    // A form of another site cannot send JSON.
    let cases: &[(u16, HeaderPairs<'_>)] = &[
        (415, &[]),
        (415, &[("Content-Type", "text/plain")]),
        (415, &[("Content-Type", "application/x-www-form-urlencoded")]),
        (415, &[("Content-Type", "multipart/form-data")]),
        (403, &[JSON, site("cross-site")]),
        (403, &[JSON, site("none")]),
        (403, &[JSON, ("Origin", "null")]),
        (202, &[JSON, site("same-origin")]),
    ];
    for (status, headers) in cases {
        let answer = http::ask(api, "POST", "/api/audit", headers, "{}").await.unwrap();
        assert_eq!(answer.status, *status, "{headers:?}: {answer:?}");
    }
    // Another site may link to the page, but cannot read it.
    for (status, path, from) in [
        (200, "/", "cross-site"),
        (200, "/api/history", "none"),
        (403, "/api/history", "cross-site"),
        (403, "/requests", "same-site"),
    ] {
        let answer = http::ask(api, "GET", path, &[site(from)], "").await.unwrap();
        assert_eq!(answer.status, status, "{path}: {answer:?}");
    }
}
