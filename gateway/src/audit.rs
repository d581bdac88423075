//! The whole audit, on demand: one at a time, and its result for all pages.

use std::convert::Infallible;
use std::time::Duration;

use contract::facts;
use jiff::Timestamp;
use observe::audit::{Ids, Verdict};
use serde::Serialize;
use tokio::sync::{Notify, watch};
use tracing::warn;
use workqueue::{Connection, chain, topology};

/// The most ids of a kind that a page gets.
const NAMED: usize = 20;

/// Whether an audit runs, and the result of the last one.
#[derive(Debug, Default, Serialize)]
pub(crate) struct AuditProgress {
    running_since: Option<Timestamp>,
    /// The reason if the last audit has no verdict.
    trouble: Option<String>,
    judged_at: Option<Timestamp>,
    clean: bool,
    verdict: Option<Verdict>,
}

/// The audit of this gateway.
#[derive(Debug, Default)]
pub(crate) struct Audit {
    progress: watch::Sender<AuditProgress>,
    wanted: Notify,
}

impl Audit {
    /// The progress, and each change of it.
    pub(crate) fn watch(&self) -> watch::Receiver<AuditProgress> {
        self.progress.subscribe()
    }

    /// Begins an audit, unless one is running. Returns whether it begins.
    pub(crate) fn begin(&self) -> bool {
        let begun = self.progress.send_if_modified(|progress| {
            let is_free = progress.running_since.is_none();
            progress.running_since.get_or_insert_with(workqueue::now);
            is_free
        });
        if begun {
            self.wanted.notify_one();
        }
        begun
    }

    fn end(&self, judged: anyhow::Result<Verdict>) {
        let judged_at = Some(workqueue::now());
        self.progress.send_replace(match judged {
            Ok(mut verdict) => {
                let clean = verdict.is_clean();
                let Ids { lost, doubled, dead_lettered } = &mut verdict.ids;
                for ids in [lost, doubled, dead_lettered] {
                    ids.truncate(NAMED);
                }
                AuditProgress { judged_at, clean, verdict: Some(verdict), ..Default::default() }
            }
            Err(error) => {
                let trouble = Some(chain(&*error));
                AuditProgress { trouble, judged_at, ..Default::default() }
            }
        });
    }

    /// Runs an audit each time that a page asks for one.
    pub(crate) async fn run(&self, connection: &Connection, limit: u64) -> Infallible {
        loop {
            self.wanted.notified().await;
            let judged = judge(connection, limit).await;
            if let Err(error) = &judged {
                warn!("the audit has no verdict: {}", chain(&**error));
            }
            self.end(judged);
        }
    }
}

async fn judge(connection: &Connection, limit: u64) -> anyhow::Result<Verdict> {
    let nats = connection.context();
    let requests = topology::bucket_state(nats, facts::REQUESTED).await?.state.messages;
    anyhow::ensure!(
        requests <= limit,
        "there are {requests} requests, and this button reads at most {limit} (AUDIT_LIMIT); \
         `decoupled audit` reads any number"
    );
    observe::audit::audit(nats, Duration::ZERO).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_audit_runs_at_a_time_and_its_result_stays() {
        let audit = Audit::default();
        let seen = audit.watch();
        assert!(audit.begin());
        assert!(!audit.begin());
        let lost = (0..100).map(|number| number.to_string()).collect();
        let ids = Ids { lost, ..Ids::default() };
        audit.end(Ok(Verdict { lost: 100, ids, ..Verdict::default() }));
        let progress = serde_json::to_value(&*seen.borrow()).unwrap();
        assert_eq!(progress["clean"], false);
        assert_eq!(progress["verdict"]["lost"], 100);
        assert_eq!(progress["verdict"]["ids"]["lost"].as_array().unwrap().len(), NAMED);
        assert!(audit.begin());
        audit.end(Err(anyhow::anyhow!("no broker")));
        assert_eq!(serde_json::to_value(&*seen.borrow()).unwrap()["trouble"], "no broker");
    }
}
