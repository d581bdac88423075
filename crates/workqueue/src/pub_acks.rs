//! The broker's acks of publishes, over one subscription for the whole connection.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::{Arc, Mutex};

use async_nats::client::PublishErrorKind;
use async_nats::jetstream::{self, ErrorCode};
use async_nats::{Client, Message, StatusCode, Subject, SubscribeError, Subscriber};
use futures_util::StreamExt;
use serde::Deserialize;
use tokio::sync::{oneshot, watch};
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

use crate::connect_options::ANSWER_TIMEOUT;
use crate::connection::lost;
use crate::connection_events::Link;
use crate::job::Publication;
use crate::publisher::PublishError;

/// Publishes, and hands each ack of the broker to the publish that waits for it.
///
/// The client library uses a new subject for each ack. A broker caches the routes of recent subjects, so known
/// subjects cost it less. Here there are only as many subjects as publishes that wait at a time. A subject is used
/// again once its ack has arrived. Otherwise it is never used again, because a late ack would count for another
/// publish.
#[derive(Debug)]
pub(crate) struct PubAcks {
    client: Client,
    waiting: Arc<Mutex<Waiting>>,
    _reader: AbortOnDropHandle<()>,
}

/// The broker has stored a message.
#[derive(Debug)]
pub(crate) struct Stored {
    /// Whether the stream had a message with the same message id already.
    pub(crate) duplicate: bool,
    /// The total, if the stream counts.
    pub(crate) total: Option<String>,
}

type Answer = Result<Stored, PublishError>;

/// The publishes that wait for their acks.
#[derive(Debug)]
struct Waiting {
    /// The prefix of the subjects of all acks. A number follows.
    prefix: String,
    /// The number of the next new subject.
    next: u64,
    /// Subjects that can be used again.
    free: Vec<(u64, Subject)>,
    publishes: HashMap<u64, Publish>,
}

#[derive(Debug)]
struct Publish {
    /// How many times the connection had been established before.
    times_connected: u64,
    answer: oneshot::Sender<Answer>,
}

impl PubAcks {
    pub(crate) async fn subscribe(
        client: &Client,
        link: watch::Receiver<Link>,
    ) -> Result<Self, SubscribeError> {
        let prefix = format!("{}.", client.new_inbox());
        let subscription = client.subscribe(format!("{prefix}*")).await?;
        let (free, publishes) = (Vec::new(), HashMap::new());
        let waiting = Arc::new(Mutex::new(Waiting { prefix, next: 0, free, publishes }));
        let reader = tokio::spawn(hand_out(subscription, link, Arc::clone(&waiting)));
        Ok(Self { client: client.clone(), waiting, _reader: AbortOnDropHandle::new(reader) })
    }

    /// Publishes once, and waits for the ack. `times_connected` is the number of connections so far: if this
    /// connection is lost, the ack is most likely lost with it.
    pub(crate) async fn publish(&self, publication: Publication, times_connected: u64) -> Answer {
        let (sender, answer) = oneshot::channel();
        let mut waits = Waits::new(&self.waiting, times_connected, sender);
        let Publication { subject, headers, body } = publication;
        let reply = waits.subject.clone();
        let publish = async {
            let sent =
                self.client.publish_with_reply_and_headers(subject, reply, headers, body).await;
            match sent {
                Ok(()) => waits.answered(answer).await,
                Err(error) if error.kind() == PublishErrorKind::MaxPayloadExceeded => {
                    Err(PublishError::TooLarge(error.into()))
                }
                Err(error) => Err(PublishError::Unconfirmed(error.into())),
            }
        };
        let answer = timeout(ANSWER_TIMEOUT, publish).await;
        answer.unwrap_or_else(|_too_long| Err(Unconfirmed::TimedOut.into()))
    }
}

/// Why it is unknown whether a message was stored.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unconfirmed {
    #[error("the connection was lost")]
    Lost,
    /// The broker still loads the stream from its disk, a cluster elects a leader, or the stream was deleted.
    #[error("no stream takes this subject")]
    NoStream,
    #[error("no answer within {ANSWER_TIMEOUT:?}")]
    TimedOut,
}

impl From<Unconfirmed> for PublishError {
    fn from(reason: Unconfirmed) -> Self {
        Self::Unconfirmed(reason.into())
    }
}

/// A publish waits for its ack for as long as this lives.
struct Waits<'a> {
    waiting: &'a Mutex<Waiting>,
    number: u64,
    subject: Subject,
    is_answered: bool,
}

impl<'a> Waits<'a> {
    fn new(
        waiting: &'a Mutex<Waiting>,
        times_connected: u64,
        answer: oneshot::Sender<Answer>,
    ) -> Self {
        let mut all = waiting.lock().expect("nothing panics while it holds this lock");
        let (number, subject) = all.free.pop().unwrap_or_else(|| {
            let number = all.next;
            all.next += 1;
            (number, format!("{}{number}", all.prefix).into())
        });
        all.publishes.insert(number, Publish { times_connected, answer });
        Self { waiting, number, subject, is_answered: false }
    }

    async fn answered(&mut self, answer: oneshot::Receiver<Answer>) -> Answer {
        let answer = answer.await.map_err(|_lost| Unconfirmed::Lost)?;
        self.is_answered = true;
        answer
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        let mut all = self.waiting.lock().expect("nothing panics while it holds this lock");
        if self.is_answered {
            all.free.push((self.number, self.subject.clone()));
        } else {
            all.publishes.remove(&self.number);
        }
    }
}

impl Waiting {
    /// Hands an ack to the publish that waits for it.
    fn hand(&mut self, ack: &Message) {
        let number = ack.subject.strip_prefix(&*self.prefix).and_then(|number| number.parse().ok());
        if let Some(publish) = number.and_then(|number| self.publishes.remove(&number)) {
            // The publish may just have been given up.
            let _ = publish.answer.send(read(ack));
        }
    }

    /// Gives up the acks of publishes over earlier connections than this one.
    fn lose(&mut self, times_connected: u64) {
        self.publishes.retain(|_, publish| publish.times_connected >= times_connected);
    }
}

/// Hands the acks to their publishes, and gives up those that were lost with a connection.
async fn hand_out(mut acks: Subscriber, link: watch::Receiver<Link>, waiting: Arc<Mutex<Waiting>>) {
    let waiting = || waiting.lock().expect("nothing panics while it holds this lock");
    let times = link.borrow().times;
    let mut lost = pin!(lost(link.clone(), times));
    loop {
        tokio::select! {
            biased;
            ack = acks.next() => match ack {
                Some(ack) => waiting().hand(&ack),
                None => break,
            },
            times = lost.as_mut() => {
                waiting().lose(times);
                lost.set(self::lost(link.clone(), times));
            }
        }
    }
    // The client has ended.
    waiting().publishes.clear();
}

/// The content of an ack.
fn read(ack: &Message) -> Answer {
    #[derive(Deserialize)]
    struct Body {
        error: Option<jetstream::Error>,
        #[serde(default)]
        duplicate: bool,
        val: Option<String>,
    }

    if ack.status == Some(StatusCode::NO_RESPONDERS) {
        return Err(Unconfirmed::NoStream.into());
    }
    match serde_json::from_slice(&ack.payload) {
        Ok(Body { error: Some(error), .. }) => Err(classify(error)),
        Ok(Body { duplicate, val, .. }) => Ok(Stored { duplicate, total: val }),
        Err(error) => Err(PublishError::Unconfirmed(error.into())),
    }
}

/// The classification of an answer of the broker.
fn classify(answer: jetstream::Error) -> PublishError {
    /// The stream's limit of the size of a message, and the broker's of that of all its
    /// headers; async-nats has no names for them.
    const EXCEEDS_MAXIMUM: [u64; 2] = [10054, 10097];

    match answer.error_code() {
        ErrorCode::STREAM_WRONG_LAST_SEQUENCE | ErrorCode::STREAM_WRONG_LAST_SEQUENCE_CONSTANT => {
            PublishError::AlreadyExists
        }
        ErrorCode::ACCOUNT_RESOURCES_EXCEEDED
        | ErrorCode::INSUFFICIENT_RESOURCES
        | ErrorCode::MEMORY_RESOURCES_EXCEEDED
        | ErrorCode::STORAGE_RESOURCES_EXCEEDED
        | ErrorCode::STREAM_TOO_MANY_REQUESTS => PublishError::Full(answer.into()),
        // The broker has one code for all errors of a stream's store. Only the text distinguishes a full queue. The
        // message causes none of them.
        ErrorCode::STREAM_STORE_FAILED if is_full(&answer) => PublishError::Full(answer.into()),
        ErrorCode::STREAM_STORE_FAILED | ErrorCode::STREAM_DUPLICATE_MESSAGE_CONFLICT => {
            PublishError::Unconfirmed(answer.into())
        }
        ErrorCode::MESSAGE_SCHEDULES_PATTERN_INVALID
        | ErrorCode::MESSAGE_SCHEDULES_TARGET_INVALID
        | ErrorCode::MESSAGE_SCHEDULES_TIME_ZONE_INVALID => PublishError::Invalid(answer.into()),
        code if EXCEEDS_MAXIMUM.contains(&code.0) => PublishError::TooLarge(answer.into()),
        _ if answer.code() == 503 => PublishError::Unconfirmed(answer.into()),
        _ => PublishError::Rejected(answer.into()),
    }
}

fn is_full(answer: &jetstream::Error) -> bool {
    let text = answer.to_string();
    ["maximum messages", "maximum bytes", "no space left"].iter().any(|sign| text.contains(sign))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiting() -> Mutex<Waiting> {
        let prefix = "_INBOX.test.".to_owned();
        Mutex::new(Waiting { prefix, next: 0, free: Vec::new(), publishes: HashMap::new() })
    }

    fn ack(subject: &Subject, body: &'static str) -> Message {
        Message {
            subject: subject.clone(),
            reply: None,
            payload: body.into(),
            headers: None,
            status: None,
            description: None,
            length: 0,
        }
    }

    fn hand(waiting: &Mutex<Waiting>, ack: &Message) {
        waiting.lock().unwrap().hand(ack);
    }

    #[tokio::test]
    async fn subject_is_used_again_once_its_ack_has_come() {
        let waiting = waiting();
        let (sender, answer) = oneshot::channel();
        let mut first = Waits::new(&waiting, 1, sender);
        let subject = first.subject.clone();
        hand(&waiting, &ack(&subject, r#"{"stream": "GREETINGS", "seq": 1}"#));
        assert!(!first.answered(answer).await.unwrap().duplicate);
        drop(first);
        assert_eq!(Waits::new(&waiting, 1, oneshot::channel().0).subject, subject);
    }

    #[tokio::test]
    async fn late_ack_is_not_taken_for_that_of_another_publish() {
        let waiting = waiting();
        let given_up = Waits::new(&waiting, 1, oneshot::channel().0).subject.clone();
        // Its ack comes, and it is given up before it hears of it.
        let unheard = Waits::new(&waiting, 1, oneshot::channel().0);
        let unheard_of = unheard.subject.clone();
        hand(&waiting, &ack(&unheard_of, r#"{"seq": 1}"#));
        drop(unheard);
        let (sender, answer) = oneshot::channel();
        let mut last = Waits::new(&waiting, 1, sender);
        for late in [&given_up, &unheard_of] {
            assert_ne!(*late, last.subject);
            hand(&waiting, &ack(late, r#"{"seq": 1}"#));
        }
        hand(&waiting, &ack(&last.subject, r#"{"seq": 2, "duplicate": true}"#));
        assert!(last.answered(answer).await.unwrap().duplicate);
    }

    #[tokio::test]
    async fn lost_connection_ends_only_the_publishes_over_it() {
        let waiting = waiting();
        let (sender, over_the_lost_one) = oneshot::channel();
        let mut lost = Waits::new(&waiting, 1, sender);
        let (sender, answer) = oneshot::channel();
        let mut other = Waits::new(&waiting, 2, sender);
        waiting.lock().unwrap().lose(2);
        assert!(lost.answered(over_the_lost_one).await.unwrap_err().lost_connection());
        hand(&waiting, &ack(&other.subject, r#"{"seq": 1}"#));
        other.answered(answer).await.unwrap();
    }

    #[test]
    fn ack_is_an_error_that_says_what_to_do_next() {
        let subject = Subject::from_static("_INBOX.test.0");
        let said = |body| read(&ack(&subject, body));
        assert_eq!(said(r#"{"seq": 7, "val": "12"}"#).unwrap().total.as_deref(), Some("12"));
        let full = r#"{"error": {"code": 503, "err_code": 10077, "description": "maximum messages exceeded"}}"#;
        assert!(matches!(said(full), Err(PublishError::Full(_))));
        let other = full.replace("maximum messages exceeded", "the disk fails").leak();
        assert!(matches!(said(other), Err(PublishError::Unconfirmed(_))));
        let exists = r#"{"error": {"code": 400, "err_code": 10071, "description": "wrong last sequence: 1"}}"#;
        assert!(matches!(said(exists), Err(PublishError::AlreadyExists)));
        assert!(matches!(said("no JSON"), Err(PublishError::Unconfirmed(_))));
        let no_stream = Message { status: Some(StatusCode::NO_RESPONDERS), ..ack(&subject, "") };
        let no_stream = read(&no_stream).unwrap_err();
        assert!(no_stream.is_transient() && !no_stream.lost_connection());
    }
}
