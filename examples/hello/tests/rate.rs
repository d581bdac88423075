//! A handler with a rate limit of its own, on a real broker, in two workers.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};
use testkit::broker::{Broker, BrokerOptions};
use testkit::eventually::eventually;
use tokio_util::sync::CancellationToken;
use workqueue::{Context, Failure, Handler, Job, NatsSettings, Producer, Queue, Service, Settings};

/// Call somebody who does not want to be called too often.
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
        *self.0.lock().unwrap().entry(workqueue::now().as_second()).or_default() += 1;
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
