//! The cost of encoding and decoding a message, in time and in allocations:
//! `cargo bench --package contract`.
//!
//! Because of these measurements, the names of headers are made once, and a body begins with room for one string.

use contract::facts::Received;
use contract::queues::{Acknowledgment, Request, Response};
use contract::{Amount, Strings};
use divan::{AllocProfiler, Bencher};
use jiff::Timestamp;
use workqueue::{Fact, Job, JobId, Publication, Trace};

#[global_allocator]
static ALLOCATIONS: AllocProfiler = AllocProfiler::system();

const INSTANCE: &str = "instance-12345";

/// How many strings are in a message.
const COUNTS: [u32; 3] = [1, 16, 64];

fn main() {
    divan::main();
}

fn request(count: u32) -> Request {
    let amount = Amount::new(count, 64).expect("it is within the limits");
    Request::new(JobId::new(), amount, INSTANCE, Timestamp::now())
}

fn response(count: u32) -> Response {
    let Request { id, requested_at, .. } = request(count);
    let values = (0..count).map(|_| "a".repeat(64)).collect::<Vec<_>>();
    let values = Strings::try_from(values).expect("they are within the limits");
    let generator = INSTANCE.to_owned();
    let (started_at, generated_at) = (Some(requested_at), Timestamp::now());
    Response { id, requested_at, values, generator, started_at, generated_at }
}

fn acknowledgment(count: u32) -> Acknowledgment {
    Acknowledgment::new(response(count), INSTANCE, Timestamp::now())
}

fn received(count: u32) -> Received {
    let Acknowledgment { id, values, .. } = acknowledgment(count);
    let marked_by = INSTANCE.to_owned();
    Received { id, values, marked_by, received_at: Timestamp::now() }
}

/// Makes the publication of a message.
fn encode<M: Job>(bencher: Bencher, message: &M) {
    let id = message.id().expect("it carries its own");
    bencher.bench(|| message.publication(id, &Trace::default()));
}

/// Makes the message of a publication, and finds of which trace it is part.
fn decode<M: Job>(bencher: Bencher, message: &M) {
    let id = message.id().expect("it carries its own");
    let publication = message.publication(id, &Trace::default()).expect("it is an object");
    let Publication { subject, headers, body } = publication;
    let decode = || M::decode(&subject, Some(&headers), &body).expect("it is what was encoded");
    bencher.bench(|| (decode(), Trace::of(Some(&headers))));
}

#[divan::bench]
fn encode_request(bencher: Bencher) {
    encode(bencher, &request(1));
}

#[divan::bench]
fn decode_request(bencher: Bencher) {
    decode(bencher, &request(1));
}

#[divan::bench(args = COUNTS)]
fn encode_response(bencher: Bencher, count: u32) {
    encode(bencher, &response(count));
}

#[divan::bench(args = COUNTS)]
fn decode_response(bencher: Bencher, count: u32) {
    decode(bencher, &response(count));
}

#[divan::bench(args = COUNTS)]
fn encode_acknowledgment(bencher: Bencher, count: u32) {
    encode(bencher, &acknowledgment(count));
}

#[divan::bench(args = COUNTS)]
fn decode_acknowledgment(bencher: Bencher, count: u32) {
    decode(bencher, &acknowledgment(count));
}

#[divan::bench(args = COUNTS)]
fn create_received(bencher: Bencher, count: u32) {
    let fact = received(count);
    bencher.bench(|| fact.creation(&Trace::default()));
}
