//! Several relays, and notifications of new events.

use std::collections::HashMap;

use testkit::proxy::Proxy;

use crate::system::{Kind, System, cancel, held, http, kinds, place};

#[tokio::test]
async fn events_of_an_order_keep_their_order_with_two_relays() {
    for kind in kinds() {
        let system = System::start(kind).await;
        let orders = system.run("orders");
        let _relays = ["orders-relay"; 2].map(|program| system.run(program));
        let http = http(&orders).await;
        for _ in 0..50 {
            cancel(http, place(http).await).await;
        }
        let mut numbers: HashMap<_, Vec<i64>> = HashMap::new();
        for event in system.events(100).await {
            numbers.entry(event.order).or_default().push(event.number);
        }
        assert!(numbers.values().all(|numbers| numbers == &[1, 2]), "{kind:?}: {numbers:?}");
        let _payments = ["payments"; 2].map(|program| system.run(program));
        system.complete(50).await;
    }
}

/// The second relay skips the events that the first one has claimed, until the first one is killed.
#[cfg(feature = "postgres")]
#[tokio::test]
async fn relay_skips_the_orders_of_another() {
    let system = System::start(Kind::Postgres).await;
    let proxy = Proxy::start(system.broker.port()).await.unwrap();
    proxy.hold("order-events.");
    let orders = system.run("orders");
    let mut first = system.run_at(&proxy.url(), "orders-relay", &[]);
    let http = http(&orders).await;
    let claimed = place(http).await;
    held(&proxy).await;
    cancel(http, claimed).await;
    let _second = system.run("orders-relay");
    let other = place(http).await;
    let events = system.events(1).await;
    assert_eq!((events[0].order, events[0].number), (other, 1));
    first.kill().await.unwrap();
    let events: Vec<_> = system.events(3).await.iter().map(|it| (it.order, it.number)).collect();
    assert_eq!(events, [(other, 1), (claimed, 1), (claimed, 2)]);
}

#[cfg(feature = "postgres")]
#[tokio::test]
async fn relay_is_notified_of_an_event() {
    let system = System::start(Kind::Postgres).await;
    let orders = system.run("orders");
    let url = system.broker.url();
    let _relay = system.run_at(&url, "orders-relay", &[("POLL_INTERVAL", "24h")]);
    let http = http(&orders).await;
    for count in 1..=3 {
        place(http).await;
        system.events(count).await;
    }
}
