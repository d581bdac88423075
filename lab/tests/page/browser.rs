//! A browser without a screen: Chromium, through its ChromeDriver.

use std::fmt;
use std::path::Path;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use fantoccini::wd::{WebDriverCompatibleCommand, WindowHandle};
use fantoccini::{Client, ClientBuilder, Locator};
use hyper_util::client::legacy::connect::HttpConnector;
use serde_json::{Map, Value, json};
use tempfile::TempDir;
use testkit::eventually::eventually;
use testkit::process::{Process, bound_to_this, logged};
use testkit::reserved_ports::ReservedPorts;
use tokio::process::Command;

/// The output of ChromeDriver once it listens.
const SIGN: &str = "was started successfully";

const NOT_THERE: &str = "there is no chromedriver to be started; install Chromium with its driver, \
                         such as with `apt-get install chromium chromium-driver`";

/// A browser with one tab, or several. It ends when this is dropped.
pub struct Browser {
    pub client: Client,
    _driver: Process,
    _directory: TempDir,
}

impl Browser {
    pub async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        Command::new("chromedriver").arg("--version").output().await.expect(NOT_THERE);
        let mut command = bound_to_this("chromedriver");
        // Of port 0 it makes two, one for each version of IP, and ends if they cannot be the same.
        let (_reserved, port) = ReservedPorts::free().unwrap();
        command.arg(format!("--port={port}"));
        // A killed browser leaves its temporary files there.
        command.env("TMPDIR", directory.path());
        let log = directory.path().join("chromedriver.log");
        let driver = Process::spawn(command, log).unwrap();
        logged(&driver, SIGN).await;
        let profile = directory.path().join("profile");
        let client = ClientBuilder::new(HttpConnector::new())
            .capabilities(capabilities(&profile))
            .connect(&format!("http://127.0.0.1:{port}"))
            .await
            .expect("a browser starts");
        Self { client, _driver: driver, _directory: directory }
    }

    /// Opens a page, in a window as large as a notebook's.
    pub async fn open(&self, url: &str) {
        self.resize(1366, 1000).await;
        self.client.goto(url).await.unwrap();
    }

    /// Opens the page in another tab, and switches to it.
    pub async fn open_another(&self, url: &str) -> WindowHandle {
        let tab = self.client.new_window(true).await.unwrap().handle;
        self.client.switch_to_window(tab.clone()).await.unwrap();
        self.client.goto(url).await.unwrap();
        tab
    }

    /// Resizes the page to this many pixels.
    pub async fn resize(&self, width: u32, height: u32) {
        let size =
            json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": false });
        self.cdp("Emulation.setDeviceMetricsOverride", size).await;
    }

    /// Emulates a media feature, such as a preference of the user.
    pub async fn prefers(&self, feature: &str, value: &str) {
        self.prefer(&[(feature, value)]).await;
    }

    /// Emulates several media features, and no others.
    pub async fn prefer(&self, features: &[(&str, &str)]) {
        let features = features.iter().map(|(name, value)| json!({ "name": name, "value": value }));
        let media = json!({ "features": features.collect::<Vec<_>>() });
        self.cdp("Emulation.setEmulatedMedia", media).await;
    }

    /// Runs a script, and returns its result.
    pub async fn run(&self, script: &str) -> Value {
        self.client.execute(script, Vec::new()).await.unwrap()
    }

    /// Waits until this expression is true. The error has the text of the page.
    pub async fn until(&self, expression: &str) {
        let script = format!("return [Boolean({expression}), document.body.innerText];");
        eventually(expression, async || match self.run(&script).await {
            Value::Array(seen) if seen[0] == true => Ok(()),
            Value::Array(seen) => Err(seen[1].as_str().unwrap_or_default().to_owned()),
            other => Err(other.to_string()),
        })
        .await;
    }

    /// Waits until the visible text of an element contains this.
    pub async fn says(&self, selector: &str, text: &str) {
        let (selector, text) = (json!(selector), json!(text));
        self.until(&format!(
            "[...document.querySelectorAll({selector})].some(it => it.innerText.includes({text}))"
        ))
        .await;
    }

    /// Clicks an element, once it can be clicked. It is looked up until a click has reached it, because the page may
    /// replace it between the two commands.
    pub async fn press(&self, selector: &str) {
        let enabled = format!("{selector}:not([aria-disabled=true])");
        eventually(&format!("{selector} is pressed"), async || {
            self.client.find(Locator::Css(&enabled)).await?.click().await
        })
        .await;
    }

    /// Presses the button with these words, within the first element that a CSS selector finds.
    pub async fn press_words(&self, within: &str, words: &str) {
        self.run(&format!("[...document.querySelector('{within}').querySelectorAll('button')].find(it => it.textContent === '{words}').click()")).await;
    }

    /// Types into a field, and replaces its text.
    pub async fn write(&self, selector: &str, text: &str) {
        let field = self.client.find(Locator::Css(selector)).await.unwrap();
        field.clear().await.unwrap();
        field.send_keys(text).await.unwrap();
    }

    /// Types a key, wherever the focus is.
    pub async fn types(&self, key: &str) {
        let focused = self.client.active_element().await.unwrap();
        focused.send_keys(key).await.unwrap();
    }

    /// The errors of the page: failed scripts, and violations of its policy.
    pub async fn complaints(&self) -> Vec<String> {
        let entries = self.command("se/log", json!({ "type": "browser" })).await;
        let entries = entries.as_array().cloned().unwrap_or_default();
        let entries = entries.iter().filter(|entry| entry["level"] == "SEVERE");
        entries.map(|entry| entry["message"].to_string()).collect()
    }

    /// Saves a screenshot.
    pub async fn photograph(&self, file: &Path) {
        let answer = self.cdp("Page.captureScreenshot", json!({ "format": "png" })).await;
        let image = BASE64_STANDARD.decode(answer["data"].as_str().unwrap()).unwrap();
        std::fs::write(file, image).unwrap();
    }

    async fn cdp(&self, command: &str, parameters: Value) -> Value {
        self.command("goog/cdp/execute", json!({ "cmd": command, "params": parameters })).await
    }

    async fn command(&self, path: &'static str, body: Value) -> Value {
        self.client.issue_cmd(Extra { path, body }).await.unwrap()
    }
}

fn capabilities(profile: &Path) -> Map<String, Value> {
    let mut arguments: Vec<String> = [
        "--headless=new",
        // In a container the sandbox often does not work.
        "--no-sandbox",
        "--disable-dev-shm-usage",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
    ]
    .map(str::to_owned)
    .to_vec();
    arguments.push(format!("--user-data-dir={}", profile.display()));
    let capabilities = json!({
        "goog:chromeOptions": { "args": arguments },
        "goog:loggingPrefs": { "browser": "ALL" },
    });
    capabilities.as_object().unwrap().clone()
}

/// A command that only ChromeDriver knows.
struct Extra {
    path: &'static str,
    body: Value,
}

impl fmt::Debug for Extra {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} {}", self.path, self.body)
    }
}

impl WebDriverCompatibleCommand for Extra {
    fn endpoint(
        &self,
        base: &url::Url,
        session: Option<&str>,
    ) -> Result<url::Url, url::ParseError> {
        base.join(&format!("session/{}/{}", session.unwrap_or_default(), self.path))
    }

    fn method_and_body(&self, _: &url::Url) -> (http::Method, Option<String>) {
        (http::Method::POST, Some(self.body.to_string()))
    }
}
