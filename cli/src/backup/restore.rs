//! Restores a backup on a broker that has none of its streams.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail, ensure};
use async_nats::jetstream::stream::ClusterInfo;
use async_nats::jetstream::{Context, ErrorCode};
use contract::queues;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use workqueue::api;
use workqueue::topology::{self, DeclareError};
use workqueue::{Connection, Queue};

use crate::terminal::tell;

use super::broker_state::in_the_queue;
use super::manifest::{KeptStream, Manifest, file, outstanding};
use super::snapshot;

/// The time limit for each step of the comparison with the backup. A step is a stream, or a broker that leads it. An
/// election alone takes up to nine seconds, and each stream and consumer has one.
const LIMIT: Duration = Duration::from_mins(2);

/// The most by which the clocks of two brokers may differ.
const CLOCKS: SignedDuration = SignedDuration::from_mins(1);

/// The pause before the restore asks again for another leader: time for an election, and for the five seconds after
/// which a follower asks its leader again for missing messages.
const UNDISTURBED: Duration = Duration::from_secs(15);

const PAUSE: Duration = Duration::from_millis(20);

/// The reason for which a restore ends early.
pub(super) const STOPPED: &str = "a signal has ended the restore";

/// What to do with a broker that has a part of a backup.
const REMEDY: &str = "Start no service. Empty its store, or remove these streams (nats stream rm), and restore again";

/// Restores all streams with their consumers from a directory onto a broker that has none of them. `replicas` is the
/// number of brokers of a cluster that should keep each stream; without it, as many as before. Reports its progress on
/// standard error.
///
/// # Errors
///
/// If the directory is no backup or is damaged, if one of the streams exists already, or if the broker is older than
/// the backed-up one. Nothing is changed then. If the restore fails later, the error names the streams that the broker
/// has.
pub async fn restore(
    connection: &Connection,
    directory: &Path,
    replicas: Option<usize>,
) -> anyhow::Result<()> {
    let manifest = Manifest::read(directory).await?;
    give_all(connection, directory, &manifest, replicas, &CancellationToken::new()).await
}

/// As [`restore`], with the manifest of the directory, which was read before. Fails early after `stop`.
pub(super) async fn give_all(
    connection: &Connection,
    directory: &Path,
    manifest: &Manifest,
    replicas: Option<usize>,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    let nats = connection.context();
    tell(format_args!(
        "a backup of {}, of a broker of version {}",
        manifest.made_at, manifest.broker
    ));
    check_broker(&connection.client().server_info().version, &manifest.broker)?;
    let there = there(nats, manifest).await?;
    ensure!(
        there.is_empty(),
        "the broker has {} already, and nothing was changed: restore onto one whose store is empty, \
         before any program declares anything there",
        there.join(", ")
    );
    for stream in &manifest.streams {
        let mut config = stream.config.clone();
        if let Some(replicas) = replicas {
            config["num_replicas"] = json!(replicas);
        }
        let path = directory.join(file(&stream.name));
        let giving = snapshot::give(connection, stream, &config, &path);
        let given = stop.run_until_cancelled(giving).await;
        if let Err(mut error) = given.unwrap_or_else(|| Err(anyhow!(STOPPED))) {
            // The broker has one code for all errors of a restore.
            if error.to_string().contains("subjects overlap") {
                let subjects = config["subjects"].as_array().into_iter().flatten();
                let subjects: Vec<_> =
                    subjects.filter_map(|it| it.as_str().map(str::to_owned)).collect();
                error = anyhow!(topology::subject_taken(nats, &subjects).await);
            }
            let left = self::there(nats, manifest).await.ok();
            return Err(error).with_context(|| broken_off(&stream.name, left.as_deref()));
        }
        snapshot::report(stream)?;
    }
    let completing = wait_until_complete(nats, manifest, replicas);
    let Some(completed) = stop.run_until_cancelled(completing).await else {
        let all: Vec<&str> = manifest.streams.iter().map(|stream| stream.name.as_str()).collect();
        bail!("{STOPPED}: perhaps not all of {} is there. {REMEDY}", all.join(", "));
    };
    completed.with_context(|| {
        format!("the broker does not have the whole backup after {LIMIT:?}: do not use it")
    })
}

/// The error of a restore that failed halfway, with its remedy. The broker may keep a part of a stream.
fn broken_off(stream: &str, left: Option<&[String]>) -> String {
    let left = match left {
        Some([]) => return format!("cannot restore {stream}; nothing of it is on the broker"),
        Some(left) => left.join(", "),
        None => "some streams".to_owned(),
    };
    format!("cannot restore {stream}: of this backup the broker has only {left}. {REMEDY}")
}

/// Refuses a broker that would not understand the backup.
fn check_broker(broker: &str, backed_up: &str) -> anyhow::Result<()> {
    let (is, should_be) = (release(broker)?, release(backed_up)?);
    ensure!(
        is >= should_be,
        "the broker is version {broker}, and cannot read the backup of a newer one, {backed_up}"
    );
    Ok(())
}

/// The first two numbers of a version. Brokers that differ only in the third one write the same format.
fn release(version: &str) -> anyhow::Result<(u64, u64)> {
    let mut numbers = version.split('.').map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => Ok((major, minor)),
        _ => bail!("a broker of an unknown version, {version}"),
    }
}

/// The streams of a backup that are on the broker.
async fn there(nats: &Context, manifest: &Manifest) -> anyhow::Result<Vec<String>> {
    let mut there = Vec::new();
    for stream in &manifest.streams {
        match topology::stream_state(nats, &stream.name).await {
            Ok(_) => there.push(stream.name.clone()),
            Err(DeclareError::Refused { source, .. })
                if source.error_code() == ErrorCode::STREAM_NOT_FOUND => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(there)
}

/// Waits until all brokers that should keep a stream have its messages and its consumers.
async fn wait_until_complete(
    nats: &Context,
    manifest: &Manifest,
    replicas: Option<usize>,
) -> anyhow::Result<()> {
    for stream in &manifest.streams {
        within(LIMIT, async || compare(nats, stream, replicas).await).await?;
    }
    // A follower counts as current before it has fetched the restored messages, which would be lost with its leader.
    // Only a leader reports its number of messages, so each broker leads once.
    for stream in &manifest.streams {
        let state = async || Ok(topology::stream_state(nats, &stream.name).await?);
        let Some(cluster) = within(LIMIT, state).await?.cluster else { continue };
        let followers = cluster.replicas.iter().map(|follower| follower.name.as_str());
        // The first leader is also the last one: the broker has spread the leaders well.
        for broker in followers.chain(cluster.leader.as_deref()) {
            within(LIMIT, async || {
                lead(nats, &stream.name, broker).await?;
                compare(nats, stream, replicas).await
            })
            .await?;
        }
    }
    Ok(())
}

/// Tries until it succeeds, at most for this time.
async fn within<T>(
    limit: Duration,
    attempt: impl AsyncFn() -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let limit = Instant::now() + limit;
    loop {
        match attempt().await {
            Err(_) if Instant::now() < limit => sleep(PAUSE).await,
            result => return result,
        }
    }
}

/// Makes this broker the leader of a stream, unless it is.
async fn lead(nats: &Context, stream: &str, broker: &str) -> anyhow::Result<()> {
    let leads = async || {
        let info = topology::stream_state(nats, stream).await?;
        let leader = info.cluster.and_then(|cluster| cluster.leader);
        anyhow::Ok(leader.as_deref() == Some(broker))
    };
    if leads().await? {
        return Ok(());
    }
    let subject = format!("STREAM.LEADER.STEPDOWN.{stream}");
    let question = json!({ "placement": { "preferred": broker } });
    let _answer: Value = api::call(nats, subject, &question).await?;
    within(UNDISTURBED, async || {
        let is_leader = leads().await.unwrap_or(false);
        ensure!(is_leader, "{broker} lacks a part of {stream}, and so does not lead it");
        Ok(())
    })
    .await
}

/// Compares a stream on the broker, and its consumers, with the backup.
async fn compare(nats: &Context, kept: &KeptStream, replicas: Option<usize>) -> anyhow::Result<()> {
    let name = &kept.name;
    let should_be = kept.state()?;
    let is = topology::stream_state(nats, name).await?;
    let last = is.state.last_sequence;
    // A schedule that has fallen due since the backup fires at once, which adds a message.
    let fires = is.config.allow_message_schedules;
    ensure!(
        last == should_be.last_sequence || fires && last > should_be.last_sequence,
        "{name} ends with message {last}, and should end with {}",
        should_be.last_sequence
    );
    let messages = is.state.messages;
    if messages < should_be.messages {
        // Ages count, and this machine's clock may be wrong.
        workqueue::compare_clocks(nats, name).await?;
    }
    // The broker removes these in the restore.
    let settled: u64 = kept.consumers.iter().map(|consumer| consumer.settled).sum();
    let is_complete = messages == should_be.messages
        || (messages > should_be.messages && fires)
        || (messages < should_be.messages
            && (messages + settled >= should_be.messages || may_have_forgotten(kept)));
    ensure!(is_complete, "messages in {name}: {messages}, and should be {}", should_be.messages);
    let copies = replicas.unwrap_or(is.config.num_replicas);
    let brokers = brokers(is.cluster.as_ref());
    ensure!(brokers >= copies, "{name} is only on {brokers} of {copies} brokers");
    for consumer in &kept.consumers {
        // A backup of an older version lacks some lanes.
        let mut lanes = queues::ALL.into_iter().flat_map(Queue::lanes);
        let lane = lanes
            .find(|lane| lane.queue.stream == name.as_str() && lane.consumer() == consumer.name);
        let lane = lane.with_context(|| format!("{name} has a consumer {}", consumer.name))?;
        let info = topology::lane_state(nats, lane).await?;
        let outstanding = outstanding(&info);
        // After a crash, and until a service pulls again, a consumer may count messages that the queue has removed. The
        // broker may forget them in the restore.
        let should_be = consumer.outstanding.min(in_the_queue(nats, &info).await?);
        ensure!(
            outstanding >= should_be,
            "messages outstanding for the consumer {} of {name}: {outstanding}, and should be at least {should_be}",
            consumer.name
        );
        let brokers = self::brokers(info.cluster.as_ref());
        ensure!(
            brokers >= copies,
            "the consumer {} of {name} is only on {brokers} of {copies} brokers",
            consumer.name
        );
    }
    Ok(())
}

/// The number of brokers that have the whole stream, by its leader: the leader itself, and each current follower.
fn brokers(cluster: Option<&ClusterInfo>) -> usize {
    let followers = cluster.map_or(&[][..], |cluster| &cluster.replicas);
    1 + followers.iter().filter(|follower| follower.current && !follower.offline).count()
}

/// Whether the oldest message of a stream is older by now than the stream keeps them.
fn may_have_forgotten(stream: &KeptStream) -> bool {
    let max_age = stream.config["max_age"].as_i64().filter(|age| *age > 0);
    let oldest = stream.state["first_ts"].as_str().and_then(|at| at.parse::<Timestamp>().ok());
    let (Some(max_age), Some(oldest)) = (max_age, oldest) else { return false };
    let age = workqueue::now().duration_since(oldest).saturating_add(CLOCKS);
    age >= SignedDuration::from_nanos(max_age)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broker_reads_backups_of_its_own_release_and_of_older_ones() {
        for older in ["2.15.1", "2.15.9", "2.12.0", "1.99.0", "2.15.0-RC.1"] {
            check_broker("2.15.1", older).unwrap();
        }
        for newer in ["2.16.0", "3.0.0"] {
            let error = check_broker("2.15.1", newer).unwrap_err().to_string();
            assert!(error.ends_with(&format!("the backup of a newer one, {newer}")), "{error}");
        }
        check_broker("2.15.1", "two").unwrap_err();
    }

    #[tokio::test(start_paused = true)]
    async fn step_is_tried_until_its_time_limit() {
        let begun = Instant::now();
        let step = within(LIMIT, async || {
            ensure!(begun.elapsed() > LIMIT / 2, "not yet");
            Ok(())
        });
        step.await.unwrap();
        within(LIMIT, async || Err::<(), _>(anyhow!("never"))).await.unwrap_err();
    }

    #[test]
    fn only_a_stream_with_an_age_limit_forgets() {
        let hour = SignedDuration::from_hours(1);
        let stream = |max_age: SignedDuration, oldest: Timestamp| KeptStream {
            name: "KV_stored".to_owned(),
            bytes: 0,
            sha256: String::new(),
            config: json!({ "max_age": i64::try_from(max_age.as_nanos()).unwrap() }),
            state: json!({ "first_ts": oldest }),
            consumers: Vec::new(),
        };
        let now = workqueue::now();
        assert!(!may_have_forgotten(&stream(SignedDuration::ZERO, now - 2 * hour)));
        assert!(!may_have_forgotten(&stream(2 * hour, now - hour)));
        assert!(may_have_forgotten(&stream(hour, now - 2 * hour)));
    }
}
