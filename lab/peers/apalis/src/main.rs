//! The round trip of requests, responses and acknowledgments on apalis with Redis: `apalis-peer generator`, and
//! `apalis-peer requestor NUMBER`, which asks for that many strings.

use std::env;
use std::process;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use apalis::prelude::*;
use apalis_redis::{Config, ConnectionManager, RedisStorage};
use rand::distr::{Alphanumeric, SampleString};
use redis::AsyncCommands as _;

/// An id and a length, an id and a string, an id.
type Request = (String, usize);
type Response = (String, String);
type Acknowledgment = String;

/// How many tasks a worker takes at a time, and how many requests are made at a time.
const BATCH: usize = 100;

/// How many tasks a worker does at a time.
const CONCURRENCY: usize = 200;

/// How often a worker looks for tasks that it did not find before.
const POLL: Duration = Duration::from_millis(25);

type Queue<T> = RedisStorage<T>;

type Done = Result<(), BoxDynError>;

async fn make((id, length): Request, responses: Data<Queue<Response>>) -> Done {
    Ok((*responses).clone().push((id, random(length))).await?)
}

async fn store(
    (id, value): Response,
    acknowledgments: Data<Queue<Acknowledgment>>,
    database: Data<ConnectionManager>,
) -> Done {
    let _: () = (*database).clone().hset("strings", &id, value).await?;
    Ok((*acknowledgments).clone().push(id).await?)
}

async fn mark(id: Acknowledgment, database: Data<ConnectionManager>) -> Done {
    let mut database = (*database).clone();
    let is_first: bool = database.sadd("marks", id).await?;
    if !is_first {
        let _: () = database.incr("doubled", 1).await?;
    }
    Ok(())
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut arguments = env::args().skip(1);
    let (service, total) = (arguments.next().context("which service?")?, arguments.next());
    let mut database = apalis_redis::connect(env::var("REDIS_URL")?).await?;
    let mut requests: Queue<Request> = queue(&database, "requests");
    let responses: Queue<Response> = queue(&database, "responses");
    let acknowledgments: Queue<Acknowledgment> = queue(&database, "acknowledgments");
    // A worker that comes back under the name of one that was killed is refused at first.
    let worker = |task: &str| WorkerBuilder::new(format!("{task}-{}", process::id()));
    if service == "generator" {
        let make = worker("make")
            .backend(requests.poll_with_interval(POLL))
            .concurrency(CONCURRENCY)
            .parallelize(tokio::spawn)
            .data(responses)
            .build(make);
        let mark = worker("mark")
            .backend(acknowledgments.poll_with_interval(POLL))
            .concurrency(CONCURRENCY)
            .parallelize(tokio::spawn)
            .data(database)
            .build(mark);
        println!("listening");
        tokio::try_join!(make.run(), mark.run())?;
    } else {
        let store = worker("store")
            .backend(responses.poll_with_interval(POLL))
            .concurrency(CONCURRENCY)
            .parallelize(tokio::spawn)
            .data(acknowledgments)
            .data(database.clone())
            .build(store);
        let storing = tokio::spawn(store.run());
        let total: usize = total.context("how many?")?.parse()?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis();
        let _: () = database.set("began", u64::try_from(now)?).await?;
        for begin in (0..total).step_by(BATCH) {
            let batch = begin..total.min(begin + BATCH);
            requests.push_bulk(batch.map(|_| (random(36), 16)).collect()).await?;
        }
        storing.await??;
    }
    Ok(())
}

fn queue<T>(database: &ConnectionManager, name: &str) -> Queue<T> {
    let config = Config::default().queue(name).batch_size(BATCH);
    // The tasks of a worker that was killed are done again after 30 s, as with the ACK_WAIT of the requestor and the
    // generator. A poll that takes longer than POLL is followed by the next one only with a heartbeat.
    let config = config.heartbeat_interval(Duration::from_secs(1)).missed_heartbeats(30);
    RedisStorage::new(database.clone()).with_config(config)
}

fn random(length: usize) -> String {
    Alphanumeric.sample_string(&mut rand::rng(), length)
}
