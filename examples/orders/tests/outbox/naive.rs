//! Without the outbox: the same kill loses an event, or leaves one of an order that does not exist.

use orders::audit::Fate;
use testkit::eventually::eventually;
use testkit::process::Process;
use testkit::proxy::Proxy;
use workqueue::JobId;

use crate::system::{Kind, System, http, kill_before, kinds, place, post};

/// Starts an order service that publishes in this naive way, and stops it just before the publish. Returns the id of the
/// order.
async fn publishing(system: &System, proxy: &Proxy, publish: &str) -> (Process, JobId) {
    proxy.hold("order-events.");
    let orders = system.run_at(&proxy.url(), "orders", &[("PUBLISH", publish)]);
    let (http, id) = (http(&orders).await, JobId::new());
    tokio::spawn(post(http, id));
    (orders, id)
}

/// The output of the audit, and whether the verdict is clean.
async fn audit(system: &System) -> (bool, String) {
    let output = system.command(&system.broker.url(), "orders-audit").output().await.unwrap();
    (output.status.success(), String::from_utf8(output.stdout).unwrap())
}

#[tokio::test]
async fn commit_then_publish_loses_an_event() {
    for kind in kinds() {
        let system = System::start(kind).await;
        let proxy = Proxy::start(system.broker.port()).await.unwrap();
        let (mut orders, id) = publishing(&system, &proxy, "after-commit").await;
        kill_before(&proxy, &mut orders).await;
        let others = ["orders", "orders-relay", "payments"].map(|program| system.run(program));
        // They work again, and do not know of the event.
        let later = place(http(&others[0]).await).await.to_string();
        eventually("a later order is complete", async || {
            let verdict = system.verdict().await;
            let complete = verdict.0.get(&Fate::Complete);
            if complete.is_some_and(|ids| ids.contains(&later)) { Ok(()) } else { Err(verdict) }
        })
        .await;
        let (is_clean, verdict) = audit(&system).await;
        let named = format!("Lost         1\n  {id}\n");
        assert!(!is_clean && verdict.contains(&named), "{kind:?}: {verdict}");
    }
}

#[tokio::test]
async fn publish_then_commit_invents_an_order() {
    for kind in kinds() {
        let system = System::start(kind).await;
        let proxy = Proxy::start(system.broker.port()).await.unwrap();
        let (mut orders, id) = publishing(&system, &proxy, "before-commit").await;
        system.kill_after(&proxy, &mut orders).await;
        let _payments = system.run("payments");
        system.events(0).await;
        let (is_clean, verdict) = audit(&system).await;
        let named = format!("Invented     1\n  {id}\n");
        assert!(!is_clean && verdict.contains(&named), "{kind:?}: {verdict}");
    }
}

#[tokio::test]
async fn naive_ways_work_without_a_fault() {
    for publish in ["after-commit", "before-commit"] {
        let system = System::start(Kind::Sqlite).await;
        let url = system.broker.url();
        let orders = system.run_at(&url, "orders", &[("PUBLISH", publish)]);
        let _payments = system.run("payments");
        place(http(&orders).await).await;
        system.complete(1).await;
        let (is_clean, verdict) = audit(&system).await;
        assert!(is_clean, "{verdict}");
    }
}
