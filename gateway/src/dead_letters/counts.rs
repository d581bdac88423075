//! The numbers of dead letters by reason. They are counted again only after a change.

use std::collections::BTreeMap;
use std::time::Duration;

use async_nats::jetstream::stream::State;
use tokio::sync::Mutex;
use tokio::time::Instant;
use workqueue::Connection;
use workqueue::dead_letters::{self, Reason};
use workqueue::reading::ReadStreamError;

/// The shortest time between two counts while dead letters arrive.
const INTERVAL: Duration = Duration::from_secs(1);

/// The number of dead letters with each reason.
pub(crate) type ByReason = BTreeMap<Reason, u64>;

/// The last count. Requests that come while the gateway counts wait for that one count.
#[derive(Debug, Default)]
pub(crate) struct Counts(Mutex<Option<Counted>>);

#[derive(Debug)]
struct Counted {
    at: Instant,
    /// The first and the last sequence, and the number of messages.
    of: (u64, u64, u64),
    by_reason: ByReason,
}

impl Counts {
    /// The dead letters of this state by their reasons.
    pub(super) async fn of(
        &self,
        connection: &Connection,
        state: &State,
    ) -> Result<ByReason, ReadStreamError> {
        let of = (state.first_sequence, state.last_sequence, state.messages);
        let mut last = self.0.lock().await;
        if let Some(last) = &*last
            && (last.of == of || is_new(last, of))
        {
            return Ok(last.by_reason.clone());
        }
        let by_reason = dead_letters::count(connection.context()).await?;
        *last = Some(Counted { at: Instant::now(), of, by_reason: by_reason.clone() });
        Ok(by_reason)
    }
}

/// Whether a count is new enough to be used although more dead letters have arrived. After a removal it is not: a
/// person has removed them, and checks whether they are gone.
fn is_new(last: &Counted, (_, _, messages): (u64, u64, u64)) -> bool {
    messages > last.of.2 && last.at.elapsed() < INTERVAL
}
