//! Messages that the client library cannot read or send: a service that receives one loses its connection, or dies.
//! `decoupled declare --watch` moves them to the dead letters.

use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use cli::dead_letters::replay;
use contract::facts::Received;
use contract::queues::{self, REQUESTS, RESPONSES};
use testkit::broker::{Broker, BrokerOptions};
use testkit::eventually::eventually;
use testkit::process::logged;
use workqueue::Queue;
use workqueue::dead_letters::{ATTEMPTS, HEADER_BLOCK, REASON, SUBJECT, list};
use workqueue::topology::Limits;

use crate::dead_letters::value;
use crate::deployment::{
    Deployment, LIMITS, PATIENT, Service, creation, ended, open_pulls, publication, ready,
    succeeded,
};
use crate::foreign_messages::{Raw, publish_raw, send_raw};
use crate::round_trips::request;

/// A key, the headers, and the reason in the dead letter.
pub type UnreadableCase = (&'static [u8], &'static [u8], &'static str);

const FINE: &[u8] = b"NATS/1.0\r\nX: y\r\n\r\n";
const NO_HEADERS: &[u8] = b"NATS/1.0\r\nX-Mine: kept\r\nnothing\r\n\r\n";

/// Messages that break the connection.
const BREAKING: [UnreadableCase; 8] = [
    (b"colon", NO_HEADERS, "a line among its headers has no colon"),
    (b"space", b"NATS/1.0\r\nMy Header: b\r\n\r\n", "the name of one of its headers has a space"),
    (b"utf8", b"NATS/1.0\r\nX: \xff\r\n\r\n", "its headers are not UTF-8"),
    (b"version", b"NATS/2.0\r\nX: y\r\n\r\n", "its headers do not begin with NATS/1.0"),
    (b"\xff\xfe", FINE, "its subject is not UTF-8"),
    (b"\xfe\xff", b"", "its subject is not UTF-8"),
    (b"a\xe2\x80\x83b", FINE, "there is white space in its subject"),
    (b"a\x01b\xc2\xa0c", FINE, "there is white space in its subject"),
];

/// The message that kills the client.
pub const CARRIAGE_RETURN: UnreadableCase =
    (b"cr", b"NATS/1.0\r\nX: line\rbreak\r\n\r\n", "there is a carriage return within the value");

const BODY: &[u8] = b"\xffnobody reads this\r\n";

/// Publishes a message that no client can read, and waits until the broker has stored it.
pub async fn publish(port: u16, queue: Queue, (key, headers, _): UnreadableCase) {
    let subject = [queue.subject_of("").as_bytes(), key].concat();
    publish_raw(port, None, "inbox", Raw { subject: &subject, headers, body: BODY }).await;
}

/// Expects exactly these kinds among the dead letters, unchanged.
async fn dead_lettered(deployment: &Deployment, queue: Queue, kinds: &[UnreadableCase]) {
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
    deployment.drained(queue).await;
}

/// Waits until the broker does not send to a dead client any more.
async fn forgotten(deployment: &Deployment) {
    eventually("no pull is open", async || {
        let waiting = open_pulls(&deployment.queue_state(REQUESTS).await);
        if waiting == 0 { Ok(()) } else { Err(waiting) }
    })
    .await;
}

#[tokio::test]
async fn breaking_message_is_dead_lettered_and_delays_no_other() {
    let deployment = Deployment::start().await;
    let _watch = deployment.watch("watch", &LIMITS, &[]).await;
    let mut behind = Vec::new();
    for kind in BREAKING {
        publish(deployment.broker.port(), REQUESTS, kind).await;
        let healthy = request();
        deployment.publish(&publication(&healthy)).await;
        deployment.publish(&creation(&healthy)).await;
        behind.push(healthy.id);
    }
    let _generator = deployment.run(Service::Generator, "generator", &[]).await;
    let _requestor = deployment.run(Service::Requestor, "requestor", &[]).await;
    dead_lettered(&deployment, REQUESTS, &BREAKING).await;
    for id in behind {
        deployment.fact_eventually::<Received>(id).await;
    }
    let verdict = deployment.verdict().await;
    let counted = (verdict.complete, verdict.lost, verdict.doubled);
    assert_eq!(counted, (BREAKING.len(), 0, 0), "{verdict}");
}

#[tokio::test]
async fn every_queue_is_swept() {
    for queue in queues::ALL {
        let deployment = Deployment::start().await;
        let _watch = deployment.watch("watch", &LIMITS, &[]).await;
        publish(deployment.broker.port(), queue, BREAKING[0]).await;
        let _generator = deployment.run(Service::Generator, "generator", &[]).await;
        let _requestor = deployment.run(Service::Requestor, "requestor", &[]).await;
        dead_lettered(&deployment, queue, &BREAKING[..1]).await;
    }
}

#[tokio::test]
async fn killing_message_is_dead_lettered_before_it_is_redelivered() {
    // With an ACK_WAIT so long that the message is delivered only once.
    let deployment = Deployment::with(&PATIENT).await;
    let _watch = deployment.watch("watch", &PATIENT, &[]).await;
    let port = deployment.broker.port();
    let mut first = deployment.run(Service::Generator, "first", &[]).await;
    ready(&first).await;
    publish(port, REQUESTS, CARRIAGE_RETURN).await;
    let status = ended(&mut first).await;
    assert_eq!(status.code(), Some(1), "{}", first.log_text());
    forgotten(&deployment).await;
    let behind = request();
    deployment.publish(&publication(&behind)).await;
    let _second = deployment.run(Service::Generator, "second", &[]).await;
    let _requestor = deployment.run(Service::Requestor, "requestor", &[]).await;
    dead_lettered(&deployment, REQUESTS, &[CARRIAGE_RETURN]).await;
    deployment.fact_eventually::<Received>(behind.id).await;
}

#[tokio::test]
async fn several_sweepers_at_once_make_one_dead_letter() {
    let deployment = Deployment::with(&PATIENT).await;
    let mut victim = deployment.run(Service::Generator, "victim", &[]).await;
    ready(&victim).await;
    publish(deployment.broker.port(), REQUESTS, CARRIAGE_RETURN).await;
    ended(&mut victim).await;
    let names = ["one", "two", "three", "four"];
    let starts = names.map(|name| deployment.watch(name, &PATIENT, &[]));
    let watches = futures_util::future::join_all(starts).await;
    for watch in &watches {
        ready(watch).await;
    }
    dead_lettered(&deployment, REQUESTS, &[CARRIAGE_RETURN]).await;
}

#[tokio::test]
async fn healthy_messages_in_flight_complete_among_unreadable_ones() {
    const HEALTHY: u64 = 2_000;
    let mut deployment = Deployment::with(&LIMITS).await;
    let _watch = deployment.watch("watch", &LIMITS, &[]).await;
    let port = deployment.broker.port();
    let slow = [("WORK_TIME", "20ms")];
    let _generators = [
        deployment.run(Service::Generator, "one", &slow).await,
        deployment.run(Service::Generator, "two", &slow).await,
    ];
    let mut requestor = deployment.ask(HEALTHY).await;
    for kind in &BREAKING[..3] {
        deployment.facts_reach(contract::facts::RECEIVED, 1).await;
        publish(port, REQUESTS, *kind).await;
    }
    deployment.broker.kill().await.unwrap();
    deployment.broker.restart().await.unwrap();
    succeeded(&mut requestor).await;
    let _requestor = deployment.run(Service::Requestor, "after", &[]).await;
    dead_lettered(&deployment, REQUESTS, &BREAKING[..3]).await;
    let verdict = deployment.verdict().await;
    let counted = (verdict.complete, verdict.dead_lettered, verdict.lost, verdict.doubled);
    assert_eq!(counted, (usize::try_from(HEALTHY).unwrap(), 0, 0, 0), "{verdict}");
}

#[tokio::test]
async fn unreadable_dead_letter_is_shown_and_not_replayed() {
    let deployment = Deployment::start().await;
    let _watch = deployment.watch("watch", &LIMITS, &[]).await;
    publish(deployment.broker.port(), RESPONSES, BREAKING[6]).await;
    let _requestor = deployment.run(Service::Requestor, "requestor", &[]).await;
    deployment.dead_letters(1).await;
    let letters = list(deployment.nats(), None).await.unwrap();
    let shown = letters[0].full();
    assert!(shown.contains(HEADER_BLOCK) && shown.contains("\\xffnobody reads this"), "{shown}");
    let kept = replay(deployment.connection(), &letters).await.unwrap();
    assert_eq!(kept, letters.len());
    assert_eq!(list(deployment.nats(), None).await.unwrap().len(), 1);
    deployment.drained(RESPONSES).await;
}

#[tokio::test]
async fn watch_without_permission_names_the_manual_step() {
    for (denied, said) in [
        ("GET", "cannot look for messages that no service can settle"),
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
        // Long enough that some work is done between two losses of the connection.
        let limits = Limits { ack_wait: Duration::from_secs(3), ..LIMITS };
        deployment.declare_once(&limits).await.unwrap();
        publish(deployment.broker.port(), REQUESTS, BREAKING[0]).await;
        let poor = [("NATS_USER", "poor"), ("NATS_PASSWORD", "poor")];
        let watch = deployment.watch("watch", &limits, &poor).await;
        let generator = deployment.run(Service::Generator, "generator", &[]).await;
        let _requestor = deployment.run(Service::Requestor, "requestor", &[]).await;
        logged(&watch, said).await;
        // Messages that are delivered together with it are lost with the connection, so this one comes later.
        let behind = request();
        deployment.publish(&publication(&behind)).await;
        deployment.fact_eventually::<Received>(behind.id).await;
        // It is logged once for all deliveries of the message.
        let lost = || generator.log_text().matches("lost the connection").count();
        let before = lost();
        eventually("it comes again and again", async || match lost() - before {
            2.. => Ok(()),
            times => Err(times),
        })
        .await;
        let log = watch.log_text();
        assert_eq!(log.matches(said).count(), 1, "{log}");
        assert_eq!(deployment.depth(REQUESTS).await, 1);
    }
}

#[tokio::test]
async fn service_whose_client_panics_while_it_starts_ends() {
    let deployment = Deployment::start().await;
    // The program waits for a domain that does not exist.
    let mut generator =
        deployment.run(Service::Generator, "generator", &[("NATS_DOMAIN", "away")]).await;
    logged(&generator, "cannot declare the topology yet").await;
    let (_, headers, _) = CARRIAGE_RETURN;
    let message = Raw { subject: b"$SRV.PING", headers, body: BODY };
    let _connection = send_raw(deployment.broker.port(), None, "inbox", message).await;
    assert_eq!(ended(&mut generator).await.code(), Some(1));
    logged(&generator, "the NATS client has panicked").await;
}

#[tokio::test]
async fn service_without_a_watch_names_the_command_that_helps() {
    let deployment = Deployment::start().await;
    publish(deployment.broker.port(), REQUESTS, BREAKING[0]).await;
    let generator = deployment.run(Service::Generator, "generator", &[]).await;
    let said = "run `decoupled declare --watch`, which moves it to the dead letters";
    logged(&generator, said).await;
    assert_eq!(deployment.depth(REQUESTS).await, 1);
    let _watch = deployment.watch("watch", &LIMITS, &[]).await;
    dead_lettered(&deployment, REQUESTS, &BREAKING[..1]).await;
    let log = generator.log_text();
    assert_eq!(log.matches(said).count(), 1, "{log}");
}
