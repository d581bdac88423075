//! Orders without a fault.

use orders::OrderEvent;
use testkit::http::ask;
use workqueue::{Job, JobId, Trace, batch};

use crate::system::{Kind, System, cancel, http, place, post};

async fn order_is_paid(kind: Kind) {
    let system = System::start(kind).await;
    let orders = system.run("orders");
    let _others = ["orders-relay", "payments"].map(|program| system.run(program));
    let http = http(&orders).await;
    let first = place(http).await;
    let second = place(http).await;
    // A client that got no answer cancels again.
    for _ in 0..2 {
        cancel(http, second).await;
    }
    system.complete(2).await;
    let again = post(http, first).await.unwrap();
    assert_eq!((again.status, &again.json()["status"]), (200, &"paid".into()), "{again:?}");
    system.complete(2).await;
}

#[tokio::test]
async fn order_is_paid_with_sqlite() {
    order_is_paid(Kind::Sqlite).await;
}

#[cfg(feature = "postgres")]
#[tokio::test]
async fn order_is_paid_with_postgres() {
    order_is_paid(Kind::Postgres).await;
}

#[tokio::test]
async fn request_that_no_order_fits_is_refused() {
    let system = System::start(Kind::Sqlite).await;
    let orders = system.run("orders");
    let http = http(&orders).await;
    let unknown = format!("/orders/{}", JobId::new());
    let headers = [("Content-Type", "application/json")];
    for (method, path, body, status) in [
        ("DELETE", unknown.as_str(), "", 404),
        ("GET", unknown.as_str(), "", 404),
        ("POST", "/orders", r#"{ "item": "a book", "amount": 0 }"#, 422),
    ] {
        let answer = ask(http, method, path, &headers, body).await.unwrap();
        assert_eq!(answer.status, status, "{method} {body}: {answer:?}");
    }
}

#[tokio::test]
async fn audit_without_orders_has_no_verdict() {
    let system = System::start(Kind::Sqlite).await;
    let audit = async || {
        let output = system.command(&system.broker.url(), "orders-audit").output().await.unwrap();
        assert!(!output.status.success(), "{output:?}");
        [output.stdout, output.stderr].map(|it| String::from_utf8(it).unwrap()).concat()
    };
    let said = audit().await;
    assert!(said.contains("there are no orders"), "{said}");
}

#[tokio::test]
async fn event_is_part_of_the_trace_of_its_order() {
    const TRACE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let system = System::start(Kind::Sqlite).await;
    let orders = system.run("orders");
    let _relay = system.run("orders-relay");
    let headers = [("Content-Type", "application/json"), ("traceparent", TRACE)];
    let body = r#"{ "item": "a book", "amount": 1200 }"#;
    let answer = ask(http(&orders).await, "POST", "/orders", &headers, body).await.unwrap();
    assert_eq!(answer.status, 201, "{answer:?}");
    system.events(1).await;
    let nats = system.connect().await;
    let stream = OrderEvent::QUEUE.stream;
    let events = batch::from_sequence(nats.context(), stream, "order-events.>", 1, 1).await;
    let (events, _) = events.unwrap();
    assert_eq!(Trace::id_of(&events[0].headers), Some("0af7651916cd43dd8448eb211c80319c"));
}
