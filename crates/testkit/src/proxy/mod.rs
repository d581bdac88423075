//! A proxy between a service and the broker that fails on command.
//!
//! A test that kills a service between two of its steps cannot rely on time. The service connects through a [`Proxy`],
//! which withholds the first publish to a subject. Then the test knows that the step before is done, and that this one
//! has not reached the broker.

mod client_stream;

use std::future;
use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{self, JoinSet};
use tokio::time;

use client_stream::ClientStream;

/// A proxy on 127.0.0.1 between clients and a broker. It understands no encryption.
///
/// It ends with all of its connections when it is dropped.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    control: Arc<Control>,
    accepting: task::JoinHandle<()>,
}

impl Proxy {
    /// Starts a proxy to the broker on this port, on a free port of its own. The broker may start, stop and restart at
    /// any time.
    ///
    /// # Errors
    ///
    /// If the operating system has no free port.
    pub async fn start(broker_port: u16) -> anyhow::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await;
        let listener = listener.context("cannot listen on any port of 127.0.0.1")?;
        let port = listener.local_addr().context("cannot tell the port of the proxy")?.port();
        let control = Arc::new(Control(watch::Sender::new(ProxyState::default())));
        let accepting = tokio::spawn(accept(listener, broker_port, Arc::clone(&control)));
        Ok(Self { port, control, accepting })
    }

    /// Where clients connect to.
    #[must_use]
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// The number of clients that are connected to the broker through this proxy. A client that has ended counts until
    /// none of its bytes can reach the broker any more.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.control.0.borrow().connections
    }

    /// From now on withholds every publish to a subject that starts with `prefix`, and all that its client sends behind
    /// it, to keep the order of the connection. The bytes of the broker still pass. If the client ends meanwhile, its
    /// withheld bytes are dropped (unless they are more than a MiB, behind which the proxy cannot see the end).
    ///
    /// An ack is a publish as well, to `$JS.ACK.<stream>.…`.
    pub fn hold(&self, prefix: impl Into<String>) {
        let hold = Hold { prefix: prefix.into(), held: None };
        self.control.0.send_modify(|state| state.hold = Some(hold));
    }

    /// Waits for the first publish that is withheld since [`Self::hold`], and returns its subject. All earlier bytes of
    /// its client are on their way to the broker then, and arrive even if the client ends.
    pub async fn held(&self) -> String {
        loop {
            let mut states = self.control.0.subscribe();
            let held = |state: &ProxyState| state.hold.as_ref().and_then(|hold| hold.held.clone());
            // The state is never gone while there is a proxy.
            if let Ok(state) = states.wait_for(|state| held(state).is_some()).await
                && let Some(subject) = held(&state)
            {
                return subject;
            }
        }
    }

    /// Passes all bytes again, first the withheld ones.
    pub fn release(&self) {
        self.control.0.send_modify(|state| state.hold = None);
    }

    /// Closes all connections at once, and drops the bytes in them. Closes each new one as well, until [`Self::mend`].
    pub fn cut(&self) {
        self.control.0.send_modify(|state| {
            state.link = LinkMode::Cut;
            state.cuts += 1;
        });
    }

    /// Keeps all connections open and accepts new ones, but passes nothing on in either direction, not even the end of a
    /// connection, until [`Self::mend`].
    pub fn hang(&self) {
        self.control.0.send_modify(|state| state.link = LinkMode::Hung);
    }

    /// Closes all connections at once, drops the bytes in them, and accepts new ones.
    pub fn reset(&self) {
        self.control.0.send_modify(|state| state.cuts += 1);
    }

    /// Delays all bytes in both directions by this time, until [`Self::mend`].
    pub fn slow(&self, delay: Duration) {
        self.control.0.send_modify(|state| state.link = LinkMode::Slow(delay));
    }

    /// Ends the effect of [`Self::cut`], [`Self::hang`] or [`Self::slow`].
    pub fn mend(&self) {
        self.control.0.send_modify(|state| state.link = LinkMode::Up);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// The state that the tasks of a proxy share.
#[derive(Debug)]
struct Control(watch::Sender<ProxyState>);

#[derive(Debug, Default)]
struct ProxyState {
    link: LinkMode,
    /// The number of cuts: a cut that is mended at once still ends all connections.
    cuts: u64,
    hold: Option<Hold>,
    connections: usize,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum LinkMode {
    #[default]
    Up,
    Slow(Duration),
    Hung,
    Cut,
}

#[derive(Debug)]
struct Hold {
    prefix: String,
    held: Option<String>,
}

impl Control {
    /// Whether a publish to this subject may pass.
    fn may_pass(&self, subject: &str) -> bool {
        !self.0.borrow().hold.as_ref().is_some_and(|hold| subject.starts_with(&hold.prefix))
    }

    /// Records that a publish to this subject is withheld, if it is the first since `hold`.
    fn note_withheld(&self, subject: &str) {
        self.0.send_if_modified(|state| match &mut state.hold {
            Some(hold) if hold.held.is_none() && subject.starts_with(&hold.prefix) => {
                hold.held = Some(subject.to_owned());
                true
            }
            _ => false,
        });
    }

    async fn until(&self, reached: impl Fn(&ProxyState) -> bool) {
        // The state is never gone while this is there.
        let _ = self.0.subscribe().wait_for(reached).await;
    }

    /// Waits until the link passes bytes on.
    async fn until_it_flows(&self) {
        self.until(|state| matches!(state.link, LinkMode::Up | LinkMode::Slow(_))).await;
    }

    /// Waits for the delay of a slow link.
    async fn delay(&self) {
        let link = self.0.borrow().link;
        if let LinkMode::Slow(delay) = link {
            time::sleep(delay).await;
        }
    }
}

async fn accept(listener: TcpListener, broker_port: u16, control: Arc<Control>) {
    // All connections end with this task.
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Some(_ended) = connections.join_next() => {}
            client = listener.accept() => match client {
                Ok((client, _)) => {
                    connections.spawn(connect(client, broker_port, Arc::clone(&control)));
                }
                Err(error) => {
                    tracing::warn!(%error, "the proxy cannot accept a connection");
                    // An error such as too many open files may pass, so the next try comes a moment later.
                    time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

async fn connect(mut client: TcpStream, broker_port: u16, control: Arc<Control>) {
    let cuts = {
        let state = control.0.borrow();
        if state.link == LinkMode::Cut {
            return;
        }
        state.cuts
    };
    // Without a broker the connection of the client ends.
    let Ok(mut broker) = TcpStream::connect((Ipv4Addr::LOCALHOST, broker_port)).await else {
        return;
    };
    control.0.send_modify(|state| state.connections += 1);
    tokio::select! {
        biased;
        () = control.until(|state| state.cuts != cuts) => {
            // The operating system drops the bytes that it has not sent yet.
            let _ = client.set_zero_linger().and_then(|()| broker.set_zero_linger());
        }
        ended = carry(&mut client, &mut broker, &control) => if let Err(error) = ended {
            tracing::debug!(error = format!("{error:#}"), "a connection through the proxy broke");
        }
    }
    control.0.send_modify(|state| state.connections -= 1);
}

/// Passes on the bytes of both directions, until the broker ends the connection.
async fn carry(
    client: &mut TcpStream,
    broker: &mut TcpStream,
    control: &Control,
) -> anyhow::Result<()> {
    client.set_nodelay(true).and_then(|()| broker.set_nodelay(true))?;
    let (from_client, to_client) = client.split();
    let (from_broker, mut to_broker) = broker.split();
    let forth = async {
        pass_on_publishes(from_client, &mut to_broker, control).await?;
        // The broker reads the rest of the client's bytes, and then closes its side.
        to_broker.shutdown().await.context("cannot end the connection to the broker")?;
        future::pending().await
    };
    tokio::select! {
        broke = forth => broke,
        ended = pass_on(from_broker, to_client, control) => ended.context("the broker broke off"),
    }
}

/// Passes on the client's bytes, until it ends. Its publishes may be withheld.
async fn pass_on_publishes(
    client: ReadHalf<'_>,
    broker: &mut WriteHalf<'_>,
    control: &Control,
) -> anyhow::Result<()> {
    let mut states = control.0.subscribe();
    let mut stream = ClientStream::default();
    loop {
        control.until_it_flows().await;
        // Checks for the end of the client before it passes on its bytes, so that a withheld publish of a killed client
        // never reaches the broker.
        let ended = read_what_is_there(&client, &mut stream).context("the client broke off")?;
        if ended && stream.withheld().is_some() {
            return Ok(());
        }
        let passed = stream.pass(|subject| control.may_pass(subject))?;
        if !passed.is_empty() {
            control.delay().await;
            control.until_it_flows().await;
        }
        broker.write_all(&passed).await.context("the broker takes nothing")?;
        // Only now, because the test relies on all earlier bytes being on their way.
        if let Some(subject) = stream.withheld() {
            control.note_withheld(subject);
        }
        if ended {
            return Ok(());
        }
        tokio::select! {
            readable = client.readable(), if stream.has_room() => {
                readable.context("the client broke off")?;
            }
            _ = states.changed() => {}
        }
    }
}

/// Reads the bytes that have arrived, as long as there is room. Returns whether that was the end.
fn read_what_is_there(client: &ReadHalf<'_>, stream: &mut ClientStream) -> io::Result<bool> {
    while stream.has_room() {
        stream.end().reserve(16 * 1024);
        match client.try_read_buf(stream.end()) {
            Ok(0) => return Ok(true),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            // A client that was killed before it had read all bytes ends this way.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(true),
            Err(error) => return Err(error),
        }
    }
    Ok(false)
}

/// Passes on the broker's bytes, until the broker ends the connection. If the client reads no more, this continues,
/// because bytes of the client may still be on their way.
async fn pass_on(
    mut broker: ReadHalf<'_>,
    mut client: WriteHalf<'_>,
    control: &Control,
) -> io::Result<()> {
    let mut chunk = vec![0; 64 * 1024];
    loop {
        control.until_it_flows().await;
        let length = broker.read(&mut chunk).await?;
        control.delay().await;
        control.until_it_flows().await;
        if length == 0 {
            return Ok(());
        }
        let _ = client.write_all(&chunk[..length]).await;
    }
}
