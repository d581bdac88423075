//! Messages that the client library cannot read, and that no client library would send: whoever takes
//! one loses the connection, or dies of it.

use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use cli::dead_letters::replay_all;
use contract::dead_letters::{ATTEMPTS, HEADER_BLOCK, REASON, SUBJECT};
use contract::facts::{Fact, Received};
use contract::queues::{self, Queue, REQUESTS, RESPONSES};
use contract::topology::{self, Limits};
use observe::dead_letters::list;
use testkit::broker::{Broker, BrokerOptions};
use testkit::eventually::eventually;
use testkit::process::logged;

use crate::by_hand::{Raw, publish_raw, published};
use crate::dead_letters::value;
use crate::deployment::{Deployment, LIMITS, PATIENT, Side, ended, ready, succeeded};
use crate::loops::request;

/// A key, the headers, and what the dead letter says of them.
pub type Kind = (&'static [u8], &'static [u8], &'static str);

const FINE: &[u8] = b"NATS/1.0\r\nX: y\r\n\r\n";
const NO_HEADERS: &[u8] = b"NATS/1.0\r\nX-Mine: kept\r\nnothing\r\n\r\n";

/// What breaks the connection.
const BREAKING: [Kind; 8] = [
    (b"colon", NO_HEADERS, "a line among its headers has no colon"),
    (b"space", b"NATS/1.0\r\nMy Header: b\r\n\r\n", "the name of one of its headers has a space"),
    (b"utf8", b"NATS/1.0\r\nX: \xff\r\n\r\n", "its headers are not UTF-8"),
    (b"version", b"NATS/2.0\r\nX: y\r\n\r\n", "its headers do not begin with NATS/1.0"),
    (b"\xff\xfe", FINE, "its subject is not UTF-8"),
    (b"\xfe\xff", b"", "its subject is not UTF-8"),
    (b"a\xe2\x80\x83b", FINE, "there is white space in its subject"),
    (b"a\x01b\xc2\xa0c", FINE, "there is white space in its subject"),
];

/// What kills the client.
pub const CARRIAGE_RETURN: Kind =
    (b"cr", b"NATS/1.0\r\nX: line\rbreak\r\n\r\n", "there is a carriage return within the value");

const BODY: &[u8] = b"\xffnobody reads this\r\n";

/// Publishes what no client can read, and waits until the broker has stored it.
pub async fn publish(port: u16, queue: Queue, (key, headers, _): Kind) {
    let subject = [queue.subject_of("").as_bytes(), key].concat();
    publish_raw(port, None, "inbox", Raw { subject: &subject, headers, body: BODY }).await;
}

/// Expects these kinds among the dead letters, all as they were, and nothing else there.
async fn buried(deployment: &Deployment, queue: Queue, kinds: &[Kind]) {
    let letters = deployment.dead_letters(kinds.len().try_into().unwrap()).await;
    for (key, block, reason) in kinds {
        let subject = queue.subject_of(&String::from_utf8_lossy(key));
        let encoded = BASE64_STANDARD.encode(block);
        let found = letters.iter().find(|(_, headers, _)| {
            value(headers, SUBJECT) == subject && value(headers, HEADER_BLOCK) == encoded
        });
        let what = key.escape_ascii();
        let (_, headers, body) = found.unwrap_or_else(|| panic!("{what} is not in {letters:?}"));
        let why = value(headers, REASON);
        assert!(why.starts_with("malformed: ") && why.contains(reason), "{what}: {why}");
        assert_eq!(body, BODY, "{what}");
        assert_eq!(value(headers, ATTEMPTS), "1", "{what}");
        if *block == NO_HEADERS {
            assert_eq!(value(headers, "X-Mine"), "kept");
        }
    }
    drained(deployment, queue).await;
}

async fn drained(deployment: &Deployment, queue: Queue) {
    eventually("the queue is empty", async || match deployment.depth(queue).await {
        0 => Ok(()),
        depth => Err(depth),
    })
    .await;
}

/// Waits until the broker sends nothing more to whoever has died.
async fn forgotten(deployment: &Deployment) {
    eventually("no pull is open", async || {
        let (_, consumer) = topology::queue_state(deployment.nats(), REQUESTS).await.unwrap();
        if consumer.num_waiting == 0 { Ok(()) } else { Err(consumer.num_waiting) }
    })
    .await;
}

#[tokio::test]
async fn what_breaks_the_connection_is_a_dead_letter_and_holds_up_nothing_behind_it() {
    let deployment = Deployment::start().await;
    let mut behind = Vec::new();
    for kind in BREAKING {
        publish(deployment.broker.port(), REQUESTS, kind).await;
        let healthy = request();
        deployment.publish(&published(&healthy)).await;
        deployment.publish(&healthy.creation()).await;
        behind.push(healthy.id);
    }
    let _generator = deployment.run(Side::Generator, "generator", &[]).await;
    let _requestor = deployment.run(Side::Requestor, "requestor", &[]).await;
    buried(&deployment, REQUESTS, &BREAKING).await;
    for id in behind {
        deployment.fact_eventually::<Received>(id).await;
    }
    let verdict = deployment.verdict().await;
    let counted = (verdict.complete, verdict.lost, verdict.doubled);
    assert_eq!(counted, (BREAKING.len(), 0, 0), "{verdict}");
}

#[tokio::test]
async fn every_queue_is_rid_of_what_cannot_be_read() {
    for queue in queues::ALL {
        let deployment = Deployment::start().await;
        publish(deployment.broker.port(), queue, BREAKING[0]).await;
        let _generator = deployment.run(Side::Generator, "generator", &[]).await;
        let _requestor = deployment.run(Side::Requestor, "requestor", &[]).await;
        buried(&deployment, queue, &BREAKING[..1]).await;
    }
}

#[tokio::test]
async fn what_kills_the_client_is_a_dead_letter_once_the_service_starts_again() {
    // So patient that the message comes to nobody a second time.
    let deployment = Deployment::with(&PATIENT).await;
    let port = deployment.broker.port();
    let mut first = deployment.run(Side::Generator, "first", &[]).await;
    ready(&first).await;
    publish(port, REQUESTS, CARRIAGE_RETURN).await;
    let status = ended(&mut first).await;
    assert_eq!(status.code(), Some(1), "{}", first.log_text());
    forgotten(&deployment).await;
    let behind = request();
    deployment.publish(&published(&behind)).await;
    let _second = deployment.run(Side::Generator, "second", &[]).await;
    let _requestor = deployment.run(Side::Requestor, "requestor", &[]).await;
    buried(&deployment, REQUESTS, &[CARRIAGE_RETURN]).await;
    deployment.fact_eventually::<Received>(behind.id).await;
}

#[tokio::test]
async fn several_replicas_that_find_it_at_once_make_one_dead_letter_of_it() {
    let deployment = Deployment::with(&PATIENT).await;
    let mut victim = deployment.run(Side::Generator, "victim", &[]).await;
    ready(&victim).await;
    publish(deployment.broker.port(), REQUESTS, CARRIAGE_RETURN).await;
    ended(&mut victim).await;
    let names = ["one", "two", "three", "four"];
    let starts = names.map(|name| deployment.run(Side::Generator, name, &[]));
    let replicas = futures_util::future::join_all(starts).await;
    for replica in &replicas {
        ready(replica).await;
    }
    buried(&deployment, REQUESTS, &[CARRIAGE_RETURN]).await;
}

#[tokio::test]
async fn what_is_healthy_and_in_flight_goes_its_way_among_what_cannot_be_read() {
    const HEALTHY: u64 = 2_000;
    let mut deployment = Deployment::with(&LIMITS).await;
    let port = deployment.broker.port();
    let slow = [("WORK_TIME", "20ms")];
    let _generators = [
        deployment.run(Side::Generator, "one", &slow).await,
        deployment.run(Side::Generator, "two", &slow).await,
    ];
    let mut requestor = deployment.ask(HEALTHY).await;
    for kind in &BREAKING[..3] {
        deployment.facts_reach(contract::facts::RECEIVED, 1).await;
        publish(port, REQUESTS, *kind).await;
    }
    deployment.broker.kill().await.unwrap();
    deployment.broker.restart().await.unwrap();
    succeeded(&mut requestor).await;
    let _requestor = deployment.run(Side::Requestor, "after", &[]).await;
    buried(&deployment, REQUESTS, &BREAKING[..3]).await;
    let verdict = deployment.verdict().await;
    let counted = (verdict.complete, verdict.dead_lettered, verdict.lost, verdict.doubled);
    assert_eq!(counted, (usize::try_from(HEALTHY).unwrap(), 0, 0, 0), "{verdict}");
}

#[tokio::test]
async fn such_a_dead_letter_is_shown_and_not_replayed() {
    let deployment = Deployment::start().await;
    publish(deployment.broker.port(), RESPONSES, BREAKING[6]).await;
    let _requestor = deployment.run(Side::Requestor, "requestor", &[]).await;
    deployment.dead_letters(1).await;
    let letters = list(deployment.nats(), None).await.unwrap();
    let shown = letters[0].full();
    assert!(shown.contains(HEADER_BLOCK) && shown.contains("\\xffnobody reads this"), "{shown}");
    replay_all(deployment.nats(), &letters).await.unwrap_err();
    assert_eq!(list(deployment.nats(), None).await.unwrap().len(), 1);
    drained(&deployment, RESPONSES).await;
}

#[tokio::test]
async fn without_the_permission_it_is_said_what_to_do_by_hand_and_the_rest_goes_its_way() {
    for (denied, said) in [
        ("GET", "cannot look for messages that the client cannot read"),
        ("DELETE", "nats stream rmm REQUESTS 1"),
    ] {
        let extra = format!(
            r#"authorization {{
                users: [
                    {{ user: "any", password: "any" }},
                    {{
                        user: "poor",
                        password: "poor",
                        permissions: {{ publish: {{ deny: "$JS.API.STREAM.MSG.{denied}.REQUESTS" }} }}
                    }},
                ]
            }}
            no_auth_user: any"#
        );
        let options = BrokerOptions { extra, ..BrokerOptions::default() };
        let broker = Broker::start(options).await.unwrap();
        let deployment = Deployment::at(broker).await;
        // Long enough that something is done between two times that the connection is lost.
        let limits = Limits { ack_wait: Duration::from_secs(3), ..LIMITS };
        topology::declare(deployment.nats(), &limits).await.unwrap();
        publish(deployment.broker.port(), REQUESTS, BREAKING[0]).await;
        let poor = [("NATS_USER", "poor"), ("NATS_PASSWORD", "poor")];
        let generator = deployment.run(Side::Generator, "generator", &poor).await;
        let _requestor = deployment.run(Side::Requestor, "requestor", &[]).await;
        logged(&generator, said).await;
        // What is delivered together with it is lost together with it, so this comes later.
        let behind = request();
        deployment.publish(&published(&behind)).await;
        deployment.fact_eventually::<Received>(behind.id).await;
        // It is said once, however often the message comes.
        let lost = || generator.log_text().matches("lost the connection").count();
        let before = lost();
        eventually("it comes again and again", async || match lost() - before {
            2.. => Ok(()),
            times => Err(times),
        })
        .await;
        let log = generator.log_text();
        assert_eq!(log.matches(said).count(), 1, "{log}");
        assert_eq!(deployment.depth(REQUESTS).await, 1);
    }
}
