//! Messages that somebody publishes by hand, in the place of one side or the other.

use contract::headers::Trace;
use contract::queues::{Acknowledgment, Message, Request, Response};
use contract::{Publication, Strings};

pub fn response(request: &Request, value: &str) -> Response {
    Response {
        id: request.id,
        requested_at: request.requested_at,
        values: Strings::try_from(vec![value.to_owned()]).unwrap(),
        generator: "by hand".to_owned(),
        generated_at: worker::now(),
    }
}

pub fn acknowledgment(request: &Request, value: &str) -> Acknowledgment {
    Acknowledgment::new(response(request, value), "by hand", worker::now())
}

pub fn published(message: &impl Message) -> Publication {
    message.publication(&Trace::default())
}
