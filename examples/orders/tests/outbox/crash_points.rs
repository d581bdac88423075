//! SIGKILL at each crash point. A proxy to the broker, or a lock in the database, withholds the next step, so that the
//! kill always comes between two steps.

use sqlx::{Connection, Executor, PgConnection};
use testkit::eventually::eventually;
use testkit::process::Process;
use testkit::proxy::Proxy;
use workqueue::JobId;

use crate::system::{Kind, System, cancel, http, kill_before, kinds, place, post, ready};

const PROGRAMS: [&str; 3] = ["orders", "orders-relay", "payments"];

/// Kills a program when it is about to publish to a subject that begins with `step`, replaces it, and expects no effect
/// on the result.
async fn killed_before(victim: &str, step: &str) {
    for kind in kinds() {
        let system = System::start(kind).await;
        let proxy = Proxy::start(system.broker.port()).await.unwrap();
        proxy.hold(step);
        let url = |program| if program == victim { proxy.url() } else { system.broker.url() };
        let mut programs = PROGRAMS.map(|program| system.run_at(&url(program), program, &[]));
        let http = http(&programs[0]).await;
        for _ in 0..3 {
            place(http).await;
        }
        cancel(http, place(http).await).await;
        let victim = PROGRAMS.iter().position(|program| *program == victim).unwrap();
        kill_before(&proxy, &mut programs[victim]).await;
        let _successor = system.run(PROGRAMS[victim]);
        system.complete(4).await;
    }
}

#[tokio::test]
async fn relay_killed_before_publishing_loses_nothing() {
    killed_before("orders-relay", "order-events.").await;
}

#[tokio::test]
async fn payments_killed_before_their_outcome_charge_once() {
    killed_before("payments", "payment-outcomes.").await;
}

#[tokio::test]
async fn payments_killed_before_their_ack_charge_once() {
    killed_before("payments", "$JS.ACK.ORDER_EVENTS.").await;
}

#[tokio::test]
async fn orders_killed_before_their_ack_settle_once() {
    killed_before("orders", "$JS.ACK.PAYMENT_OUTCOMES.").await;
}

/// The relay is killed after it has published the first of two events, and before it has marked it. The second event is
/// not published yet. Once the first is consumed and the broker has restarted, only the inbox knows it.
#[tokio::test]
async fn relay_killed_before_marking_publishes_again() {
    for kind in kinds() {
        let mut system = System::start(kind).await;
        let proxy = Proxy::start(system.broker.port()).await.unwrap();
        proxy.hold("order-events.");
        let orders = system.run("orders");
        let http = http(&orders).await;
        cancel(http, place(http).await).await;
        let mut relay = system.run_at(&proxy.url(), "orders-relay", &[]);
        system.kill_after(&proxy, &mut relay).await;
        eventually("all that the relay sent has arrived", async || match proxy.connections() {
            0 => Ok(()),
            connections => Err(connections),
        })
        .await;
        assert_eq!(system.events(1).await[0].number, 1, "{kind:?}");
        let _payments = system.run("payments");
        system.events(0).await;
        system.broker.kill().await.unwrap();
        system.broker.restart().await.unwrap();
        let _successor = system.run("orders-relay");
        system.complete(1).await;
        assert_eq!(system.events_so_far().await, 3, "{kind:?}");
    }
}

/// Makes a program wait in its transaction, which needs this table, and kills it there.
async fn kill_within(lock: &mut PgConnection, table: &'static str, program: &mut Process) {
    let waiting = "SELECT COUNT(*) FROM pg_locks JOIN pg_class ON pg_class.oid = relation \
         WHERE relname = $1 AND NOT granted";
    eventually("the program waits for the lock", async || {
        let waiting = sqlx::query_scalar(waiting).bind(table).fetch_one(&mut *lock).await;
        match waiting.unwrap() {
            0_i64 => Err(program.log_text()),
            _ => Ok(()),
        }
    })
    .await;
    program.kill().await.unwrap();
}

#[cfg(feature = "postgres")]
#[tokio::test]
async fn orders_killed_before_committing_accept_nothing() {
    let system = System::start(Kind::Postgres).await;
    let mut orders = system.run("orders");
    let http = http(&orders).await;
    let mut connection = system.postgres.as_ref().unwrap().connect().await;
    let mut lock = connection.begin().await.unwrap();
    lock.execute("LOCK TABLE outbox IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let asking = tokio::spawn(post(http, JobId::new()));
    kill_within(&mut lock, "outbox", &mut orders).await;
    assert!(asking.await.unwrap().is_err(), "there is no answer");
    lock.rollback().await.unwrap();
    let _others = PROGRAMS.map(|program| system.run(program));
    system.complete(0).await;
}

#[cfg(feature = "postgres")]
#[tokio::test]
async fn payments_killed_before_committing_charge_once() {
    let system = System::start(Kind::Postgres).await;
    let [orders, _relay, mut payments] = PROGRAMS.map(|program| system.run(program));
    let http = http(&orders).await;
    ready(&payments).await;
    let mut connection = system.postgres.as_ref().unwrap().connect().await;
    let mut lock = connection.begin().await.unwrap();
    lock.execute("LOCK TABLE ledger IN SHARE MODE").await.unwrap();
    place(http).await;
    kill_within(&mut lock, "ledger", &mut payments).await;
    lock.rollback().await.unwrap();
    let _successor = system.run("payments");
    system.complete(1).await;
}
