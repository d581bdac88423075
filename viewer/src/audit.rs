//! The whole audit, for when somebody asks for it: one at a time, and its result for all.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use contract::{facts, topology};
use jiff::Timestamp;
use observe::audit::{Ids, Verdict};
use serde::Serialize;
use tokio::sync::{Notify, watch};
use tracing::warn;

use crate::picture::json;
use crate::{Viewer, ViewerError};

/// How many ids of a kind are named.
const NAMED: usize = 20;

/// How the audit stands, and what the last one has found.
#[derive(Clone, Debug, Default, Serialize)]
struct Standing {
    running_since: Option<Timestamp>,
    /// Why there is no verdict, if the last one came to none.
    trouble: Option<String>,
    judged_at: Option<Timestamp>,
    clean: bool,
    verdict: Option<Verdict>,
}

/// The audit of this viewer.
pub(crate) struct Audit {
    standing: Mutex<Standing>,
    newest: watch::Sender<Arc<str>>,
    wanted: Notify,
}

impl Default for Audit {
    fn default() -> Self {
        let standing = Standing::default();
        Self {
            newest: watch::Sender::new(json(&standing)),
            standing: Mutex::new(standing),
            wanted: Notify::new(),
        }
    }
}

impl Audit {
    /// How it stands, and each change of that, as JSON.
    pub(crate) fn watch(&self) -> watch::Receiver<Arc<str>> {
        self.newest.subscribe()
    }

    fn change(&self, change: impl FnOnce(&mut Standing) -> bool) -> bool {
        let mut standing = self.standing.lock().expect("nothing panics while it holds this lock");
        let changed = change(&mut standing);
        if changed {
            self.newest.send_replace(json(&*standing));
        }
        changed
    }

    /// Has one begin, if none is running. Gives whether it does.
    pub(crate) fn begin(&self) -> bool {
        let begun = self.change(|standing| {
            let free = standing.running_since.is_none();
            standing.running_since.get_or_insert_with(workqueue::now);
            free
        });
        if begun {
            self.wanted.notify_one();
        }
        begun
    }

    fn end(&self, judged: anyhow::Result<Verdict>) {
        self.change(|standing| {
            let judged_at = Some(workqueue::now());
            *standing = match judged {
                Ok(mut verdict) => {
                    let clean = verdict.is_clean();
                    let Ids { lost, doubled, dead_lettered } = &mut verdict.ids;
                    for ids in [lost, doubled, dead_lettered] {
                        ids.truncate(NAMED);
                    }
                    Standing { judged_at, clean, verdict: Some(verdict), ..Standing::default() }
                }
                Err(error) => {
                    let trouble = Some(format!("{error:#}"));
                    Standing { trouble, judged_at, ..Standing::default() }
                }
            };
            true
        });
    }
}

/// Audits whenever somebody has asked for it.
pub(crate) async fn run(viewer: &Viewer) -> Result<(), ViewerError> {
    loop {
        viewer.audit.wanted.notified().await;
        let judged = judge(viewer).await;
        if let Err(error) = &judged {
            warn!("the audit came to no verdict: {error:#}");
        }
        viewer.audit.end(judged);
    }
}

async fn judge(viewer: &Viewer) -> anyhow::Result<Verdict> {
    let connection = viewer.connection.get();
    let nats = connection.ok_or_else(|| anyhow::anyhow!("there is no broker yet"))?.context();
    let requests = topology::bucket_state(nats, facts::REQUESTED).await?.state.messages;
    let limit = viewer.settings.audit_limit;
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
    fn there_is_one_audit_at_a_time_and_its_result_stays() {
        let audit = Audit::default();
        let seen = audit.watch();
        assert!(audit.begin());
        assert!(!audit.begin());
        let lost = (0..100).map(|number| number.to_string()).collect();
        let ids = Ids { lost, ..Ids::default() };
        audit.end(Ok(Verdict { lost: 100, ids, ..Verdict::default() }));
        let standing: serde_json::Value = serde_json::from_str(&seen.borrow()).unwrap();
        assert_eq!(standing["clean"], false);
        assert_eq!(standing["verdict"]["lost"], 100);
        assert_eq!(standing["verdict"]["ids"]["lost"].as_array().unwrap().len(), NAMED);
        assert!(audit.begin());
        audit.end(Err(anyhow::anyhow!("no broker")));
        assert!(seen.borrow().contains("no broker"));
    }
}
