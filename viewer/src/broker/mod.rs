//! Looks at the broker once a second, for all who watch.

mod look;
mod loops;
mod replicas;

use std::convert::Infallible;
use std::time::Duration;

use anyhow::anyhow;
use tokio::time::{Instant, MissedTickBehavior, interval, interval_at, timeout};
use tracing::{info, warn};
use workqueue::Connection;

use crate::Viewer;
use crate::picture::{Kind, Trouble};
use look::Looker;

/// How often to look.
const INTERVAL: Duration = Duration::from_secs(1);

/// How long a look may take. Then the broker is said to be silent: who watches has to know.
const PATIENCE: Duration = Duration::from_secs(2);

/// Says each second that there is no broker, until somebody stops it because there is one.
pub(crate) async fn wait(viewer: &Viewer) -> Infallible {
    let mut seconds = interval_at(Instant::now() + INTERVAL, INTERVAL);
    loop {
        seconds.tick().await;
        let broker = &viewer.settings.nats.nats_url;
        // The address may hold a password, which is for nobody's eyes.
        let broker = broker.rsplit('@').next().unwrap_or_default();
        let trouble = format!("no broker answers at {broker} yet");
        viewer.pictures.take(workqueue::now(), Err(Trouble { kind: Kind::Silent, words: trouble }));
    }
}

/// Looks each second, and shows what it sees, or that it sees nothing.
pub(crate) async fn show(viewer: &Viewer, connection: &Connection) -> Infallible {
    let mut seconds = interval(INTERVAL);
    seconds.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut looker = Looker::new(connection);
    let mut saw = true;
    loop {
        seconds.tick().await;
        let seen = if connection.is_connected() {
            let look = timeout(PATIENCE, looker.look()).await;
            look.unwrap_or_else(|_| Err(anyhow!("the broker does not answer")))
        } else {
            Err(anyhow!("there is no connection to the broker; trying to restore it"))
        };
        viewer.metrics.looks.inc();
        viewer.metrics.connected.set(seen.is_ok().into());
        if let Err(error) = &seen {
            viewer.metrics.failed_looks.inc();
            if saw {
                warn!("there is nothing to see: {error:#}");
            }
        } else if !saw {
            info!("the broker answers");
        }
        saw = seen.is_ok();
        let seen = seen.map_err(|error| {
            let kind = looker.kind(&error);
            if kind != Kind::Silent {
                viewer.pictures.meet(looker.there());
            }
            Trouble { kind, words: format!("{error:#}") }
        });
        viewer.pictures.take(workqueue::now(), seen);
    }
}
