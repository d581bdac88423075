//! Outages of the database and of the broker.

use testkit::process::logged;
use tokio::time::timeout;
use workqueue::JobId;

use crate::system::{Kind, LIMIT, System, cancel, http, kinds, place, post, ready};

/// The payment service has events in flight while the database is away, with a single attempt for each.
#[cfg(feature = "postgres")]
#[tokio::test]
async fn database_killed_and_restarted_costs_no_attempt() {
    let mut system = System::start(Kind::Postgres).await;
    let settings = [("ACK_WAIT", "1h"), ("MAX_ATTEMPTS", "1")];
    let programs = ["orders", "orders-relay", "payments"];
    let programs = programs.map(|program| system.run_at(&system.broker.url(), program, &settings));
    let [orders, _relay, payments] = &programs;
    let http = http(orders).await;
    ready(payments).await;
    payments.pause().unwrap();
    for _ in 0..3 {
        place(http).await;
    }
    system.events(3).await;
    let mut postgres = system.postgres.take().unwrap();
    postgres.kill().await;
    let answer = post(http, JobId::new()).await.unwrap();
    assert_eq!(answer.status, 503, "{answer:?}");
    payments.resume().unwrap();
    logged(payments, "waiting for the database").await;
    postgres.restart().await;
    system.postgres = Some(postgres);
    cancel(http, place(http).await).await;
    system.complete(4).await;
}

#[tokio::test]
async fn orders_are_accepted_while_the_broker_is_away() {
    for kind in kinds() {
        let mut system = System::start(kind).await;
        system.broker.kill().await.unwrap();
        let orders = system.run("orders");
        let _others = ["orders-relay", "payments"].map(|program| system.run(program));
        let http = http(&orders).await;
        for _ in 0..20 {
            cancel(http, place(http).await).await;
        }
        system.broker.restart().await.unwrap();
        system.complete(20).await;
    }
}

#[tokio::test]
async fn programs_that_wait_for_the_broker_can_be_stopped() {
    let mut system = System::start(Kind::Sqlite).await;
    system.broker.kill().await.unwrap();
    for (program, settings, code) in [
        ("orders", &[][..], 0),
        ("orders", &[("PUBLISH", "after-commit")], 0),
        ("orders-relay", &[], 0),
        ("payments", &[], 0),
        ("orders-audit", &[], 1),
    ] {
        let mut process = system.run_at(&system.broker.url(), program, settings);
        logged(&process, "cannot connect to the broker yet").await;
        process.terminate().unwrap();
        let status = timeout(LIMIT, process.wait()).await.expect("it ends").unwrap();
        assert_eq!(status.code(), Some(code), "{program} {settings:?}: {}", process.log_text());
    }
}
