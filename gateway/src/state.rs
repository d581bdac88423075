//! State that all routes share.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock};

use tokio_util::sync::CancellationToken;
use workqueue::{Connection, Producer};

use crate::audit::Audit;
use crate::dead_letters::counts::Counts;
use crate::metrics::GatewayMetrics;
use crate::problem::{Problem, ProblemKind};
use crate::requests::reader::RequestReader;
use crate::requests::submit::Submissions;
use crate::requests::waiters::Waiters;
use crate::settings::{GatewaySettings, Switch};
use crate::timeline::Timeline;

/// The gateway. It answers from the start of the process, even without a broker.
#[derive(Debug)]
pub(crate) struct Gateway {
    pub(crate) settings: GatewaySettings,
    pub(crate) metrics: GatewayMetrics,
    pub(crate) timeline: Arc<Timeline>,
    pub(crate) audit: Audit,
    /// Reads requests, once there is a connection.
    pub(crate) reader: OnceLock<RequestReader>,
    /// Submits requests, once all that they need is declared.
    pub(crate) submissions: OnceLock<Submissions>,
    /// The error of this machine's clock, in words.
    pub(crate) clock: Mutex<Option<String>>,
    /// Whether the broker refused the credentials at the last try to connect.
    pub(crate) refused: Arc<AtomicBool>,
    pub(crate) waiters: Waiters,
    /// The dead letters by their reasons.
    pub(crate) reasons: Counts,
    /// The connection for control, once there is one, if `CONTROL` is on.
    pub(crate) operator: OnceLock<Operator>,
    pub(crate) stop: CancellationToken,
}

/// The connection for control, and the producer on it.
#[derive(Debug)]
pub(crate) struct Operator {
    pub(crate) connection: Connection,
    pub(crate) producer: Producer,
}

impl Gateway {
    /// The reader, once there is a connection.
    pub(crate) fn reader(&self) -> Result<&RequestReader, Problem> {
        let away = || ProblemKind::BrokerAway.because("there is no connection to the broker yet");
        self.reader.get().ok_or_else(away)
    }

    /// The refusal, without the name of the user, if the broker refuses the credentials of this gateway.
    pub(crate) fn refusal(&self) -> Option<String> {
        let broker = self.settings.nats.broker();
        let words = || {
            format!(
                "the broker at {broker} refuses the credentials of the gateway; the log of the gateway \
                 names the user"
            )
        };
        self.refused.load(Relaxed).then(words)
    }

    /// The connection for control and its producer, if `CONTROL` is on.
    pub(crate) fn operator(&self) -> Result<&Operator, Problem> {
        if self.settings.control == Switch::Off {
            let detail = "this deployment is not controlled from here; set CONTROL=on to allow it";
            return Err(ProblemKind::NotAllowed.because(detail));
        }
        let operator = self.operator.get().filter(|it| it.connection.is_connected());
        operator.ok_or_else(|| {
            ProblemKind::BrokerAway.because("the gateway is not connected as the user for CONTROL")
        })
    }

    /// The connection, while there is one.
    pub(crate) fn connection(&self) -> Result<&Connection, Problem> {
        let connection = &self.reader()?.connection;
        let away = || ProblemKind::BrokerAway.because("there is no connection to the broker");
        connection.is_connected().then_some(connection).ok_or_else(away)
    }
}
