//! The server of the lab: a client with its token may read the state of the system and change it.

use std::fs::{self, File};
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header, request};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tower_http::cors::{AllowOrigin, CorsLayer};
use uuid::Uuid;
use workqueue::chain;

use super::action::Action;
use crate::lesson::{self, Workplace};
use crate::up::{SystemState, UpSettings};

/// The file with the address and the token of a lab, in the directory of its run.
pub(crate) const FILE: &str = "control.json";

/// Listens on a free port. Returns its address, and a new token.
pub(crate) async fn listen() -> anyhow::Result<(TcpListener, SocketAddr, String)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await;
    let listener = listener.context("cannot listen for the page and for other commands")?;
    let addr = listener.local_addr()?;
    Ok((listener, addr, Uuid::new_v4().simple().to_string()))
}

/// The address and the token of a lab, and of its system.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Control {
    pub(crate) addr: SocketAddr,
    pub(crate) token: String,
    /// The address of the page.
    pub(crate) gateway: SocketAddr,
    /// The addresses of the brokers.
    pub(crate) nats_url: String,
    /// The process id of the lab.
    pub(crate) pid: u32,
    /// The file that contains this.
    pub(crate) file: PathBuf,
}

impl Control {
    /// Writes the file, which only this user can read.
    pub(crate) fn write(&self) -> anyhow::Result<()> {
        let (path, new) = (&self.file, self.file.with_extension("new"));
        let file = File::options().create(true).write(true).truncate(true).mode(0o600).open(&new);
        let written = file.and_then(|mut file| file.write_all(json!(self).to_string().as_bytes()));
        // Renamed into place, so that no reader finds an incomplete file.
        let written = written.and_then(|()| fs::rename(&new, path));
        written.with_context(|| format!("cannot write {}", path.display()))
    }
}

/// A command of a page or a terminal, and the channel for the answer.
pub(crate) struct ControlRequest {
    pub(crate) what: ControlCommand,
    pub(crate) answer: oneshot::Sender<anyhow::Result<SystemState>>,
}

/// A command of a page or a terminal.
pub(crate) enum ControlCommand {
    /// Read the state.
    State,
    /// Apply an action.
    Action(Action),
    /// Set the scene of a lesson.
    Scene(Box<UpSettings>),
}

struct Shared {
    control_requests: mpsc::Sender<ControlRequest>,
    control: Control,
}

impl Shared {
    /// The system after this.
    async fn request(&self, what: ControlCommand) -> Result<Json<SystemState>, Failed> {
        let (answer, answered) = oneshot::channel();
        let _ = self.control_requests.send(ControlRequest { what, answer }).await;
        Ok(Json(answered.await.context("the lab is stopping")??))
    }
}

/// Answers clients for as long as it is polled. It passes commands on to the task that owns the system.
pub(crate) async fn serve(
    listener: TcpListener,
    control: Control,
    control_requests: mpsc::Sender<ControlRequest>,
) {
    let shared = Arc::new(Shared { control_requests, control });
    // The page comes from the gateway, under any name of this machine. The token is the protection.
    let cors = CorsLayer::new()
        .allow_origin(AllowOrigin::predicate(|origin: &HeaderValue, _: &request::Parts| {
            origin.to_str().is_ok_and(|origin| {
                let host = origin.trim_start_matches("http://");
                let host = host.rsplit_once(':').map_or(host, |(host, _)| host);
                ["127.0.0.1", "localhost", "[::1]"].contains(&host)
            })
        }))
        .allow_headers([header::AUTHORIZATION, header::CONTENT_TYPE]);
    let routes = Router::new()
        .route("/state", get(state))
        .route("/actions", post(act))
        .route("/scene", post(set_scene))
        .route("/run", post(run))
        .layer(middleware::from_fn_with_state(Arc::clone(&shared), authorized))
        .layer(cors)
        .with_state(shared);
    // It never fails by itself.
    let _ = axum::serve(listener, routes).await;
}

async fn authorized(State(shared): State<Arc<Shared>>, request: Request, next: Next) -> Response {
    let expected = format!("Bearer {}", shared.control.token);
    let given = request.headers().get(header::AUTHORIZATION).map(HeaderValue::as_bytes);
    if given != Some(expected.as_bytes()) {
        return problem(
            StatusCode::UNAUTHORIZED,
            "only the page and the commands of this lab may ask",
        );
    }
    next.run(request).await
}

fn problem(status: StatusCode, detail: &str) -> Response {
    (status, Json(json!({ "detail": detail }))).into_response()
}

/// An error as the answer to a page or a command.
struct Failed(anyhow::Error);

impl From<anyhow::Error> for Failed {
    fn from(error: anyhow::Error) -> Self {
        Self(error)
    }
}

impl IntoResponse for Failed {
    fn into_response(self) -> Response {
        problem(StatusCode::CONFLICT, &chain(&*self.0))
    }
}

async fn state(State(shared): State<Arc<Shared>>) -> Result<Json<SystemState>, Failed> {
    shared.request(ControlCommand::State).await
}

async fn act(
    State(shared): State<Arc<Shared>>,
    Json(action): Json<Action>,
) -> Result<Json<SystemState>, Failed> {
    shared.request(ControlCommand::Action(action)).await
}

/// A lesson, and a step of it, from 1.
#[derive(Deserialize)]
struct AtStep {
    lesson: usize,
    #[serde(default)]
    step: usize,
}

async fn set_scene(
    State(shared): State<Arc<Shared>>,
    Json(AtStep { lesson, .. }): Json<AtStep>,
) -> Result<Json<SystemState>, Failed> {
    let scene = lesson::scene(lesson::numbered(lesson)?)?;
    shared.request(ControlCommand::Scene(Box::new(scene))).await
}

async fn run(
    State(shared): State<Arc<Shared>>,
    Json(AtStep { lesson, step }): Json<AtStep>,
) -> Result<Json<lesson::StepRun>, Failed> {
    let step = lesson::step(lesson::numbered(lesson)?, step)?;
    Ok(Json(lesson::run(step, &Workplace::of(&shared.control)).await?))
}
