//! The page and the API under a path of a proxy that also serves other sites.

use std::net::SocketAddr;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::handler::HandlerWithoutStateExt;
use axum::http::StatusCode;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde_json::json;
use testkit::http;
use tokio::net::TcpListener;

use crate::browser::Browser;
use crate::deployment::{Deployment, Service};
use crate::gateway::GatewayProcess;

/// Serves the gateway under `/queues/`, and nothing else.
async fn proxy(gateway: SocketAddr) -> SocketAddr {
    let client = Client::builder(TokioExecutor::new()).build_http::<Body>();
    let forward = move |mut request: Request| {
        let path = request.uri().path_and_query().unwrap();
        *request.uri_mut() = format!("http://{gateway}{path}").parse().unwrap();
        let answer = client.request(request);
        async { answer.await.map_err(|_| StatusCode::BAD_GATEWAY) }
    };
    let router = Router::new().nest_service("/queues", forward.into_service());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async { axum::serve(listener, router).await });
    addr
}

#[tokio::test]
async fn page_and_api_work_under_a_path_of_a_proxy() {
    let deployment = Deployment::start().await;
    let _generator = deployment.run(Service::Generator, "generator", &[]).await;
    let _requestor = deployment.run(Service::Requestor, "requestor", &[]).await;
    let gateway = GatewayProcess::start(&deployment).await;
    let proxy = proxy(gateway.addr).await;
    let browser = Browser::start().await;
    browser.open(&format!("http://{proxy}/queues/")).await;
    browser.says("#status", "live").await;
    browser.press("#ask-form button").await;
    browser.says("#history-where", "It is complete.").await;
    browser.press("#history-close").await;
    browser.press("#audit-button").await;
    browser.says("#audit", "Nothing lost, nothing doubled.").await;
    assert_eq!(browser.run("return fetch('dead-letters').then(it => it.ok);").await, true);
    assert_eq!(browser.complaints().await, [""; 0]);

    // The addresses in answers are relative as well.
    let json = [("Content-Type", "application/json")];
    let asked = http::ask(proxy, "POST", "/queues/requests", &json, "{}").await.unwrap();
    let base = url::Url::parse(&format!("http://{proxy}/queues/requests")).unwrap();
    let location = base.join(asked.header("location").unwrap()).unwrap();
    let found = http::ask(proxy, "GET", location.path(), &[], "").await.unwrap();
    assert_eq!((found.status, &found.json()["id"]), (200, &asked.json()["id"]), "{location}");
    for path in ["/queues/nowhere", "/queues/requests/nowhere"] {
        let problem = http::ask(proxy, "GET", path, &[], "").await.unwrap().json();
        let base = url::Url::parse(&format!("http://{proxy}{path}")).unwrap();
        let kind = base.join(problem["type"].as_str().unwrap()).unwrap();
        assert_eq!(kind.path(), "/queues/openapi.json", "{problem}");
    }
    let description = http::ask(proxy, "GET", "/queues/openapi.json", &[], "").await.unwrap();
    assert_eq!(description.json()["servers"], json!([{ "url": "." }]));
}
