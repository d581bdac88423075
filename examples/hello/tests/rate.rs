//! Handlers with rate limits, for all their jobs and for each key, on a real broker, in two workers.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};
use testkit::broker::{Broker, BrokerOptions};
use testkit::eventually::eventually;
use tokio_util::sync::CancellationToken;
use workqueue::{
    Context, Failure, Handler, Job, NatsSettings, Priority, Producer, Queue, RetryPolicy, Service,
    Settings,
};

/// Call a host that has a rate limit.
#[derive(Debug, Serialize, Deserialize)]
struct Call {}

impl Job for Call {
    const QUEUE: Queue = Queue::new("CALLS", "calls").consumer("caller");
}

/// Counts its calls in each second.
#[derive(Clone, Default)]
struct Caller(Arc<Mutex<BTreeMap<i64, u32>>>);

impl Handler for Caller {
    type Job = Call;

    fn rate_limit(&self) -> Option<NonZeroU32> {
        NonZeroU32::new(5)
    }

    async fn handle(&self, _: Call, cx: &Context) -> Result<(), Failure> {
        assert_eq!(cx.attempt().number(), 1);
        *self.0.lock().unwrap().entry(cx.started_at().as_second()).or_default() += 1;
        Ok(())
    }
}

#[tokio::test]
async fn handler_has_a_rate_of_its_own_over_two_workers() {
    let broker = Broker::start(BrokerOptions::default()).await.unwrap();
    let settings = Settings { nats: NatsSettings::at(broker.url()), ..Settings::from_env() };
    let producer = Producer::connect(&settings).await.unwrap();
    for _ in 0..12 {
        producer.submit(&Call {}).await.unwrap();
    }
    let (caller, stop) = (Caller::default(), CancellationToken::new());
    let service = || Service::new("caller").consume(caller.clone());
    let look = async || {
        eventually("all calls are made", async || {
            let calls = caller.0.lock().unwrap().clone();
            if calls.values().sum::<u32>() == 12 { Ok(calls) } else { Err(calls) }
        })
        .await
    };
    let (one, other, calls) =
        tokio::join!(service().run(&settings, &stop), service().run(&settings, &stop), async {
            let calls = look().await;
            stop.cancel();
            calls
        });
    one.unwrap();
    other.unwrap();
    assert!(calls.values().all(|calls| *calls <= 5), "{calls:?}");
}

/// Write to a person through a host.
#[derive(Debug, Serialize, Deserialize)]
struct Mail {
    host: String,
}

impl Job for Mail {
    const QUEUE: Queue = Queue::new("MAILS", "mails").consumer("mailer");
}

/// Sends two mails a second to each host, and counts them by the host and the second, if that is known.
#[derive(Clone, Default)]
struct Mailer(Arc<Mutex<MailCounts>>);

type MailCounts = BTreeMap<(String, Option<i64>), u32>;

impl Handler for Mailer {
    type Job = Mail;

    /// A single attempt, so none may be spent on waiting.
    fn retry_policy(&self) -> RetryPolicy {
        RetryPolicy { max_attempts: Some(1), snoozes_count: false, ..RetryPolicy::default() }
    }

    async fn handle(&self, Mail { host }: Mail, cx: &Context) -> Result<(), Failure> {
        let before = workqueue::now().as_second();
        cx.permit(&host, NonZeroU32::new(2).unwrap()).await?;
        // At the boundary of two seconds, the second of the permit is unknown.
        let second = (workqueue::now().as_second() == before).then_some(before);
        *self.0.lock().unwrap().entry((host, second)).or_default() += 1;
        Ok(())
    }
}

#[tokio::test]
async fn each_key_has_a_rate_of_its_own_over_two_workers() {
    let broker = Broker::start(BrokerOptions::default()).await.unwrap();
    let settings = Settings { nats: NatsSettings::at(broker.url()), ..Settings::from_env() };
    let producer = Producer::connect(&settings).await.unwrap();
    for host in ["a.example.com", "b.example.com"].into_iter().cycle().take(16) {
        producer.submit(&Mail { host: host.to_owned() }).await.unwrap();
    }
    let (mailer, stop) = (Mailer::default(), CancellationToken::new());
    let service = || Service::new("mailer").consume(mailer.clone());
    let sending = async {
        let sent = eventually("all mails are sent", async || {
            let sent = mailer.0.lock().unwrap().clone();
            if sent.values().sum::<u32>() == 16 { Ok(sent) } else { Err(sent) }
        });
        let sent = sent.await;
        stop.cancel();
        sent
    };
    let (one, other, sent) =
        tokio::join!(service().run(&settings, &stop), service().run(&settings, &stop), sending);
    one.unwrap();
    other.unwrap();
    assert!(sent.iter().all(|((_, second), mails)| second.is_none() || *mails <= 2), "{sent:?}");
}

/// Call at a house that opens twice a second.
#[derive(Debug, Serialize, Deserialize)]
struct Visit {
    priority: Priority,
}

impl Job for Visit {
    const QUEUE: Queue = Queue::new("VISITS", "visits").consumer("visitor").with_priorities();

    fn priority(&self) -> Priority {
        self.priority
    }
}

/// Records the admitted visitors, in order.
#[derive(Clone, Default)]
struct Visitor(Arc<Mutex<Vec<Priority>>>);

impl Handler for Visitor {
    type Job = Visit;

    fn retry_policy(&self) -> RetryPolicy {
        RetryPolicy { snoozes_count: false, ..RetryPolicy::default() }
    }

    async fn handle(&self, Visit { priority }: Visit, cx: &Context) -> Result<(), Failure> {
        cx.permit("the house", NonZeroU32::new(2).unwrap()).await?;
        self.0.lock().unwrap().push(priority);
        Ok(())
    }
}

#[tokio::test]
async fn urgent_job_overtakes_those_that_wait_for_the_same_key() {
    let broker = Broker::start(BrokerOptions::default()).await.unwrap();
    let settings = Settings { nats: NatsSettings::at(broker.url()), ..Settings::from_env() };
    let producer = Producer::connect(&settings).await.unwrap();
    for _ in 0..400 {
        producer.submit(&Visit { priority: Priority::Low }).await.unwrap();
    }
    let (visitor, stop) = (Visitor::default(), CancellationToken::new());
    let visiting = async {
        let place = async |priority| {
            eventually("one is let in", async || {
                let seen = visitor.0.lock().unwrap().clone();
                seen.iter().position(|it| *it == priority).ok_or(seen.len())
            })
            .await
        };
        place(Priority::Low).await;
        producer.submit(&Visit { priority: Priority::High }).await.unwrap();
        let place = place(Priority::High).await;
        stop.cancel();
        place
    };
    let service = Service::new("visitor").consume(visitor.clone());
    let (service, place) = tokio::join!(service.run(&settings, &stop), visiting);
    service.unwrap();
    // The earlier ones take more than three minutes.
    assert!(place < 50, "{place}");
}
