//! Queues that are full. Nothing is dropped, and a service that waits for room in one queue goes on
//! consuming the others.

use std::collections::BTreeSet;

use contract::facts::{RECEIVED, REQUESTED, Received, STORED, Stored};
use contract::queues::{self, ACKNOWLEDGMENTS, REQUESTS, RESPONSES, Request};
use testkit::eventually::eventually;
use testkit::process::Process;
use workqueue::topology::Limits;
use workqueue::{Job, Queue};

use crate::deployment::{
    Deployment, LIMITS, PATIENT, Service, admin, creation, publication, succeeded,
};
use crate::foreign_messages::{acknowledgment, response};
use crate::round_trips::request;

/// The limit of each queue.
const ROOM: u64 = 10;

async fn with_little_room(limits: Limits) -> Deployment {
    Deployment::with(&Limits { queue_limit: ROOM, ..limits }).await
}

/// Fills a queue with messages of accepted requests. Returns the requests.
async fn fill<M: Job>(deployment: &Deployment, message: impl Fn(&Request) -> M) -> Vec<Request> {
    let mut requests = Vec::new();
    for _ in 0..ROOM {
        let request = request();
        deployment.publish(&publication(&message(&request))).await;
        deployment.publish(&creation(&request)).await;
        requests.push(request);
    }
    requests
}

async fn fill_requests(deployment: &Deployment) {
    fill(deployment, Request::clone).await;
}

async fn fill_responses(deployment: &Deployment) -> Vec<Request> {
    fill(deployment, |request| response(request, "aaaa")).await
}

async fn fill_acknowledgments(deployment: &Deployment) -> Vec<Request> {
    let requests = fill(deployment, |request| acknowledgment(request, "aaaa")).await;
    for request in &requests {
        deployment.publish(&creation(&Stored::Strings(acknowledgment(request, "aaaa")))).await;
    }
    requests
}

/// Waits until this queue has refused a service this many times.
async fn refused(replica: &Process, service: Service, queue: Queue, times: u64) {
    let name = service.name();
    let sign = format!(r#"{name}_publishes_total{{stream="{}",outcome="full"}} "#, queue.stream);
    eventually("it is refused again and again", async || {
        let (_, metrics) = admin(replica, "/metrics").await;
        let count: Option<u64> =
            metrics.lines().find_map(|line| line.strip_prefix(&sign)?.parse().ok());
        match count {
            Some(count) if count >= times => Ok(()),
            other => Err(other),
        }
    })
    .await;
}

async fn both(deployment: &Deployment, name: &str, rate: &str) -> [Process; 2] {
    let generator = format!("generator-{name}");
    let requestor = format!("requestor-{name}");
    [
        deployment.run(Service::Generator, &generator, &[]).await,
        deployment.run(Service::Requestor, &requestor, &[("REQUEST_RATE", rate)]).await,
    ]
}

#[tokio::test]
async fn full_queues_drain_after_both_services_are_killed_and_stopped() {
    let deployment = with_little_room(LIMITS).await;
    fill_acknowledgments(&deployment).await;
    fill_responses(&deployment).await;
    fill_requests(&deployment).await;
    for queue in [REQUESTS, RESPONSES, ACKNOWLEDGMENTS] {
        assert_eq!(deployment.depth(queue).await, ROOM, "{}", queue.stream);
    }
    let one_more = request();
    for publication in [
        publication(&one_more),
        publication(&response(&one_more, "aaaa")),
        publication(&acknowledgment(&one_more, "aaaa")),
    ] {
        assert!(!deployment.publish_unless_full(&publication).await, "{}", publication.subject);
    }
    let mut killed = both(&deployment, "killed", "max").await;
    deployment.facts_reach(RECEIVED, 15).await;
    for service in &mut killed {
        service.kill().await.unwrap();
    }
    let mut stopped = both(&deployment, "stopped", "max").await;
    deployment.facts_reach(RECEIVED, 60).await;
    for service in &stopped {
        service.terminate().unwrap();
    }
    for service in &mut stopped {
        succeeded(service).await;
    }
    let _rest = both(&deployment, "rest", "0").await;
    let verdict = deployment.verdict().await;
    assert!(verdict.is_clean(), "{verdict}");
    assert!(verdict.requested >= 60, "{verdict}");
    let counted = (verdict.complete, verdict.pending, verdict.dead_lettered);
    assert_eq!(counted, (verdict.requested, 0, 0), "{verdict}");
    for queue in queues::ALL {
        deployment.drained(queue).await;
    }
}

#[tokio::test]
async fn generator_without_room_for_a_response_still_marks() {
    let deployment = with_little_room(PATIENT).await;
    fill_responses(&deployment).await;
    fill_requests(&deployment).await;
    let few = [("CONCURRENCY", "2")];
    let generator = deployment.run(Service::Generator, "generator", &few).await;
    refused(&generator, Service::Generator, RESPONSES, 10).await;
    for request in fill_acknowledgments(&deployment).await {
        deployment.fact_eventually::<Received>(request.id).await;
    }
    assert_eq!(deployment.depth(REQUESTS).await, ROOM);
}

#[tokio::test]
async fn requestor_without_room_to_acknowledge_still_asks() {
    let deployment = with_little_room(PATIENT).await;
    fill_acknowledgments(&deployment).await;
    fill_responses(&deployment).await;
    fill_requests(&deployment).await;
    let few = [("CONCURRENCY", "2"), ("REQUEST_RATE", "max")];
    let requestor = deployment.run(Service::Requestor, "requestor", &few).await;
    for queue in [ACKNOWLEDGMENTS, REQUESTS] {
        refused(&requestor, Service::Requestor, queue, 10).await;
    }
    let requests = deployment.nats().get_stream(REQUESTS.stream).await.unwrap();
    requests.purge().await.unwrap();
    deployment.facts_reach(REQUESTED, 4 * ROOM).await;
    assert_eq!(deployment.depth(REQUESTS).await, ROOM);
    assert_eq!(deployment.depth(RESPONSES).await, ROOM);
}

#[tokio::test]
async fn requestor_without_room_to_ask_still_stores() {
    let deployment = with_little_room(PATIENT).await;
    fill_requests(&deployment).await;
    let few = [("CONCURRENCY", "2"), ("REQUEST_RATE", "max")];
    let requestor = deployment.run(Service::Requestor, "requestor", &few).await;
    refused(&requestor, Service::Requestor, REQUESTS, 10).await;
    fill_responses(&deployment).await;
    deployment.facts_reach(STORED, ROOM).await;
    eventually("all of them are acknowledged", async || {
        let depth = deployment.depth(ACKNOWLEDGMENTS).await;
        if depth == ROOM { Ok(()) } else { Err(depth) }
    })
    .await;
}

#[tokio::test]
async fn full_queue_is_logged_once() {
    const SAID: &str = "waiting to publish; nothing is dropped";
    const FULL: &str = "no room: maximum messages exceeded";
    let mut deployment = with_little_room(PATIENT).await;
    let busy = [("REQUEST_RATE", "max"), ("CONCURRENCY", "1000")];
    let requestor = deployment.run(Service::Requestor, "requestor", &busy).await;
    refused(&requestor, Service::Requestor, REQUESTS, 1_000).await;
    let log = requestor.log_text();
    assert_eq!(log.matches(SAID).count(), 1, "{log}");
    // Nor after a short outage of the broker, which some tasks notice later than others are refused.
    deployment.broker.kill().await.unwrap();
    deployment.broker.restart().await.unwrap();
    refused(&requestor, Service::Requestor, REQUESTS, 5_000).await;
    let log = requestor.log_text();
    assert_eq!(log.matches(FULL).count(), 1, "{log}");
    let said: Vec<&str> =
        log.lines().filter_map(|line| line.split_once(SAID)).map(|it| it.1).collect();
    let reasons: BTreeSet<&str> = said.iter().copied().collect();
    assert_eq!(said.len(), reasons.len(), "once for each reason: {log}");
    // Nor after each publish that succeeds.
    let slow = [("CONCURRENCY", "1"), ("WORK_TIME", "10ms")];
    let _generator = deployment.run(Service::Generator, "generator", &slow).await;
    deployment.facts_reach(RECEIVED, 50).await;
    let log = requestor.log_text();
    assert_eq!(log.matches(FULL).count(), 1, "{log}");
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn full_queue_does_not_grow_the_memory_of_its_publisher() {
    let deployment = with_little_room(PATIENT).await;
    let busy = [("REQUEST_RATE", "max")];
    let requestor = deployment.run(Service::Requestor, "requestor", &busy).await;
    refused(&requestor, Service::Requestor, REQUESTS, 500).await;
    let before = requestor.memory().unwrap();
    refused(&requestor, Service::Requestor, REQUESTS, 5_000).await;
    let after = requestor.memory().unwrap();
    // A leak of half a kilobyte for each refusal would exceed this.
    assert!(after < before + 2_048, "from {before} kB to {after} kB");
}
