//! `lab up`: the whole system on this machine, for experiments.

mod example;
mod hints;
mod replicas;
mod screen;
mod settings;
mod system;

pub(crate) use example::run_example;
pub use settings::UpSettings;
pub(crate) use system::{NEWER_GENERATOR, System, SystemState};

use std::future::pending;
use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail};
use cli::terminal::{producer, say, tell};
use contract::queues::{self, DueRequest};
use jiff::Timestamp;
use observe::Poller;
use observe::audit::{Verdict, audit};
use testkit::broker::answering;
use testkit::http;
use testkit::programs::{self, Programs};
use testkit::target_directory::{RunDirectory, from_here};
use tokio::sync::{Mutex, mpsc};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use workqueue::schedules::{self, Schedule};
use workqueue::{Connection, NatsSettings, Settings, chain, topology};

use crate::control::{Control, ControlCommand, ControlRequest, FILE, Lab, listen, serve};
use crate::replica::refuse_request_total;
use screen::Screen;

/// The interval at which the flow is shown.
const TICK: Duration = Duration::from_secs(1);

/// The time limit for the broker's answers. It is short, because a person who has killed the broker wants to see the
/// effect.
const PATIENCE: Duration = Duration::from_secs(2);

/// The time limit for the replicas to become ready, and the interval of the checks.
const START_TIMEOUT: Duration = Duration::from_mins(1);
const POLL: Duration = Duration::from_millis(100);

/// The time after which the page shows a change of the replicas.
const PAGE_LAG: Duration = Duration::from_secs(2);

/// A running system with its control.
pub(crate) struct RunningLab {
    system: Mutex<System>,
    control_requests: Mutex<mpsc::Receiver<ControlRequest>>,
    connection: Connection,
    /// The address of the gateway.
    pub(crate) gateway: SocketAddr,
    /// The address and the token of this lab.
    pub(crate) control: Control,
    /// The server of the control, which ends with this.
    _serving: AbortOnDropHandle<()>,
}

impl RunningLab {
    /// Starts everything, and waits until the topology is declared.
    pub(crate) async fn start(
        programs: &Programs,
        settings: &UpSettings,
        directory: &Path,
    ) -> anyhow::Result<Self> {
        let mut system = System::start(programs, settings, directory).await?;
        let url = system.brokers.url();
        let (listener, addr, token) = listen().await?;
        let gateway = system.start_gateway(&format!("http://{addr}#{token}")).await?;
        let connection = observe::connect(&NatsSettings::at(&url), "lab").await?;
        system.wait_until_declared(connection.context()).await?;
        let (pid, file) = (std::process::id(), directory.join(FILE));
        let control = Control { addr, token, gateway, nats_url: url, pid, file };
        control.write()?;
        let system = Mutex::new(system);
        let (sender, control_requests) = mpsc::channel(1);
        let serving = tokio::spawn(serve(listener, control.clone(), sender));
        Ok(Self {
            system,
            control_requests: Mutex::new(control_requests),
            connection,
            gateway,
            control,
            _serving: AbortOnDropHandle::new(serving),
        })
    }

    /// Waits until both services have as many ready replicas as in these settings, and the page shows them.
    pub(crate) async fn all_ready(&self, settings: &UpSettings) -> anyhow::Result<()> {
        let wanted = [("requestors", settings.requestors), ("generators", settings.generators)];
        // Until then the page may count replicas that have just ended.
        let from = (Timestamp::now() + PAGE_LAG).as_millisecond();
        let waiting = async {
            loop {
                self.system.lock().await.all_could_start()?;
                let history = http::ask(self.gateway, "GET", "/api/history", &[], "").await?;
                let history = history.json();
                let newest = history.as_array().and_then(|history| history.last());
                if newest.is_some_and(|now| {
                    now["at"].as_i64() >= Some(from)
                        && wanted.iter().all(|(service, count)| now[service] == *count)
                }) {
                    return Ok(());
                }
                sleep(POLL).await;
            }
        };
        timeout(START_TIMEOUT, waiting).await.context("the replicas do not become ready")?
    }

    /// Does this work. Meanwhile the page and other commands may change the system.
    pub(crate) async fn during<T>(&self, work: impl Future<Output = T>) -> T {
        let answering = async {
            let mut control_requests = self.control_requests.lock().await;
            while let Some(ControlRequest { what, answer }) = control_requests.recv().await {
                let done = match what {
                    ControlCommand::State => Ok(()),
                    ControlCommand::Action(action) => self.system.lock().await.apply(action).await,
                    ControlCommand::Scene(settings) => self.set_scene(&settings).await,
                };
                let state = self.system.lock().await.state();
                // The client may have gone.
                let _ = answer.send(done.and(state));
            }
            pending().await
        };
        tokio::select! {
            never = answering => match never {},
            done = work => done,
        }
    }

    /// Sets the scene of a lesson, whatever an earlier one has left. Returns once the page shows it.
    async fn set_scene(&self, settings: &UpSettings) -> anyhow::Result<()> {
        self.system.lock().await.set_scene(settings).await?;
        for queue in queues::ALL {
            topology::resume(self.connection.context(), queue).await?;
        }
        let producer = producer(&self.connection, Settings::from_env().limits);
        for Schedule { name, .. } in schedules::list::<DueRequest>(&self.connection).await? {
            producer.unschedule::<DueRequest>(&name).await?;
        }
        self.all_ready(settings).await
    }

    /// Stops both services gracefully. Returns the verdict, and the rest of the system with its brokers.
    pub(crate) async fn judge(self) -> anyhow::Result<(Verdict, System)> {
        let mut system = self.system.into_inner();
        system.stop().await?;
        let verdict = audit(self.connection.context(), Duration::ZERO).await?;
        Ok((verdict, system))
    }
}

/// Runs a broker and both services, and shows the flow until `stop` or until the time is over. Then stops everything
/// gracefully, and returns the verdict.
///
/// # Errors
///
/// If something cannot be built or started, or does not end gracefully.
pub async fn up(
    settings: &UpSettings,
    lesson: Option<usize>,
    stop: &CancellationToken,
) -> anyhow::Result<Verdict> {
    refuse_request_total()?;
    let programs = stop.run_until_cancelled(programs::build()).await;
    let programs = programs.context("stopped before anything was started")??;
    if let Ok(other) = Lab::find() {
        tell(format_args!(
            "Another lab is running; its page is at http://{}/. Commands such as `cargo lab stop` act on the lab that \
             was started last.",
            other.control.gateway
        ));
    }
    let directory = RunDirectory::make("up")?;
    let ended = run(&programs, directory.path(), settings, lesson, stop).await;
    if !matches!(&ended, Ok((verdict, true)) if verdict.is_clean()) {
        directory.keep();
    }
    ended.map(|(verdict, _)| verdict)
}

async fn run(
    programs: &Programs,
    directory: &Path,
    settings: &UpSettings,
    lesson: Option<usize>,
    stop: &CancellationToken,
) -> anyhow::Result<(Verdict, bool)> {
    let running = RunningLab::start(programs, settings, directory).await?;
    let page = match lesson {
        Some(number) => format!("http://{}/#/lessons/{number}", running.gateway),
        None => format!("http://{}/", running.gateway),
    };
    let url = &running.control.nats_url;
    let verb = if settings.brokers == 1 { "broker is" } else { "brokers are" };
    let above = format!(
        "The page is at {page}\nThe {verb} at {url}; logs and queues are in {}\n\n{}",
        from_here(directory),
        hints::what_to_try(settings, running.gateway)
    );
    if lesson.is_some() {
        // Otherwise its first step would take the start of a replica for a deployment.
        let ready = running.during(running.all_ready(settings));
        if let Some(ready) = stop.run_until_cancelled(ready).await {
            ready?;
        }
    }
    let screen = Screen::new(above);
    if lesson.is_some() && std::io::stdout().is_terminal() {
        // Without a browser, the address on the screen is enough.
        let _ = open::that_detached(&page);
    }
    // Also in the middle of an action, which may wait long for a broker that was killed.
    let showing = Box::pin(running.during(show(settings, screen, &running)));
    stop.run_until_cancelled(showing).await.transpose()?;
    let _ = say(format_args!("Stopping the requestors, then the generators."));
    // Without the broker, or without a majority of several, no work could be finished, and there is no verdict.
    let ports = running.system.lock().await.brokers.ports();
    let (verdict, mut system) = tokio::select! {
        biased;
        answering = too_few_answer(&ports) => {
            let answering = match (answering, ports.len()) {
                (0, _) => "no broker answers any more".to_owned(),
                (some, all) => format!("too few brokers still answer, {some} of {all}"),
            };
            bail!("{answering}, so there is no verdict; logs and queues are in {}", from_here(directory))
        }
        judged = running.judge() => judged?,
    };
    let all_are_ours = system.end().await?;
    say(format_args!("The verdict:\n\n{verdict}"))?;
    Ok((verdict, all_are_ours))
}

/// Waits until the answering brokers are no majority any more, and returns their number.
async fn too_few_answer(ports: &[u16]) -> usize {
    loop {
        let answering = answering(ports, PATIENCE).await;
        if answering <= ports.len() / 2 {
            return answering;
        }
        sleep(TICK).await;
    }
}

async fn show(settings: &UpSettings, screen: Screen, running: &RunningLab) -> anyhow::Result<()> {
    let end = settings.duration.map(|duration| Instant::now() + duration);
    let mut tick = interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut poller = Poller::new(&running.connection);
    while end.is_none_or(|end| Instant::now() < end) {
        running.system.lock().await.all_could_start()?;
        tick.tick().await;
        let looked = poller.snapshot().await;
        let columns = screen.columns();
        let processes = running.system.lock().await.describe();
        let processes = processes.map(|names| screen::wrapped(names, "   ", columns)).join("\n");
        let shown = match looked {
            Ok(snapshot) => {
                let picture = screen::picture(&snapshot, &processes, columns);
                screen.show(&picture, &screen::summary(&snapshot))
            }
            // The user may have paused or killed the broker.
            Err(reason) => {
                let reason = chain(&*reason);
                let waiting = format!("waiting for the broker and its queues: {reason}");
                let told = screen::wrapped(waiting.split(' '), " ", columns);
                screen.show(&format!("\n{told}\n\n{processes}"), &waiting)
            }
        };
        // The reader of the output has gone, as in `lab up | head`.
        if shown.is_err_and(|error| workqueue::reader_has_gone(&error)) {
            break;
        }
    }
    Ok(())
}
