//! A way to the broker that breaks when it is told to, and where it is told to.
//!
//! A test that wants to kill a service between two of its steps cannot rely on time. It lets the
//! service connect through a [`Proxy`], which withholds the first publish to a subject: the step
//! before is done, this one has not reached the broker, and the test knows.

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
/// It ends, with all of its connections, when this is dropped.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    control: Arc<Control>,
    accepting: task::JoinHandle<()>,
}

impl Proxy {
    /// Starts a proxy to the broker on this port, on a free port of its own. The broker need not
    /// be there yet, and may come and go.
    ///
    /// # Errors
    ///
    /// If the operating system has no port.
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

    /// How many clients are connected to the broker through this proxy. One that ends is counted
    /// no more as soon as nothing that it has sent can reach the broker.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.control.0.borrow().connections
    }

    /// From now on withholds every publish to a subject that starts with `prefix`, and all that its
    /// client sends behind it: the order of a connection is kept. What the broker sends still
    /// arrives. A client that ends meanwhile takes with it what is withheld: it is never let
    /// through (unless it is more than a MiB, behind which the end cannot be seen).
    ///
    /// An acknowledgment of a delivery is a publish as well, to `$JS.ACK.<stream>.…`.
    pub fn hold(&self, prefix: impl Into<String>) {
        let hold = Hold { prefix: prefix.into(), held: None };
        self.control.0.send_modify(|state| state.hold = Some(hold));
    }

    /// Waits until a publish is withheld, and returns its subject: of the first one since
    /// [`Self::hold`]. All that its client has sent before is on its way to the broker then, and
    /// gets there even if the client ends.
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

    /// Lets everything through again, first the withheld bytes.
    pub fn release(&self) {
        self.control.0.send_modify(|state| state.hold = None);
    }

    /// Closes all connections at once, with what is on its way in them, and every new one as soon
    /// as it comes, until [`Self::mend`].
    pub fn cut(&self) {
        self.control.0.send_modify(|state| {
            state.link = LinkMode::Cut;
            state.cuts += 1;
        });
    }

    /// Keeps all connections open and takes new ones, but passes nothing on in either direction,
    /// not even an end, until [`Self::mend`].
    pub fn hang(&self) {
        self.control.0.send_modify(|state| state.link = LinkMode::Hung);
    }

    /// Breaks all connections off at once, with what is on its way in them, and takes new ones.
    pub fn reset(&self) {
        self.control.0.send_modify(|state| state.cuts += 1);
    }

    /// Holds up for that long whatever is passed on, in either direction, and all that is behind
    /// it, until [`Self::mend`].
    pub fn slow(&self, delay: Duration) {
        self.control.0.send_modify(|state| state.link = LinkMode::Slow(delay));
    }

    /// Ends what [`Self::cut`], [`Self::hang`] or [`Self::slow`] began.
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
    /// How many times the link was cut: a cut that is mended at once still ends all connections.
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

    /// Puts on record that a publish to this subject is withheld, if it still is, and the first.
    fn is_withheld(&self, subject: &str) {
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

    /// Waits until the link passes something on.
    async fn until_it_flows(&self) {
        self.until(|state| matches!(state.link, LinkMode::Up | LinkMode::Slow(_))).await;
    }

    /// Waits for as long as a slow link takes.
    async fn delay(&self) {
        let link = self.0.borrow().link;
        if let LinkMode::Slow(delay) = link {
            time::sleep(delay).await;
        }
    }
}

async fn accept(listener: TcpListener, broker_port: u16, control: Arc<Control>) {
    // With this task end all connections.
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
                    // Such as too many open files: it may pass, but not by asking at once again.
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
    // A client whose broker is not there sees its connection end.
    let Ok(mut broker) = TcpStream::connect((Ipv4Addr::LOCALHOST, broker_port)).await else {
        return;
    };
    control.0.send_modify(|state| state.connections += 1);
    tokio::select! {
        biased;
        () = control.until(|state| state.cuts != cuts) => {
            // Bytes that the operating system has yet to send are lost as well.
            let _ = client.set_zero_linger().and_then(|()| broker.set_zero_linger());
        }
        ended = carry(&mut client, &mut broker, &control) => if let Err(error) = ended {
            tracing::debug!(error = format!("{error:#}"), "a connection through the proxy broke");
        }
    }
    control.0.send_modify(|state| state.connections -= 1);
}

/// Passes on the bytes of both sides, until the broker ends the connection.
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
        // The end of a client is noticed before its bytes are passed on: a withheld publish of a client
        // that was killed never happened.
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
        // Only now: the test that is told may rely on all before it being on its way.
        if let Some(subject) = stream.withheld() {
            control.is_withheld(subject);
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

/// Reads all that has arrived, as long as there is room, and says whether that was the end.
fn read_what_is_there(client: &ReadHalf<'_>, stream: &mut ClientStream) -> io::Result<bool> {
    while stream.has_room() {
        stream.end().reserve(16 * 1024);
        match client.try_read_buf(stream.end()) {
            Ok(0) => return Ok(true),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            // The end of a client that was killed before it had read everything.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(true),
            Err(error) => return Err(error),
        }
    }
    Ok(false)
}

/// Passes on the broker's bytes, until it ends. A client that takes nothing any more is no
/// reason to end: there may still be something on its way from it.
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
