//! Fetches a page from a web that is not to be trusted: each way in which a server can misbehave has a limit here, and an
//! end, either another attempt or a dead letter.

use std::error::Error;
use std::iter::successors;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use encoding_rs::{Encoding, UTF_8};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, LOCATION, RETRY_AFTER, USER_AGENT};
use hyper::{Request, Response};
use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use jiff::SignedDuration;
use mime::Mime;
use moka::future::Cache;
use robotxt::{BYTE_LIMIT, Robots, robots_url};
use rustls::crypto::ring;
use tokio::time::timeout;
use tower::util::BoxCloneSyncService;
use tower::{BoxError, ServiceExt, service_fn};
use tower_http::decompression::{Decompression, DecompressionBody};
use url::Url;
use workqueue::{Context, Failure};

use crate::address::{NotPublic, check, resolve};

/// By this name `robots.txt` calls us, and servers see us.
const AGENT: &str = "decoupled-word-count";

/// The most bytes of a page, after decompression.
const MOST_BYTES: usize = 5_000_000;

const MOST_REDIRECTS: usize = 5;

/// How long the rules of a site are remembered, and of how many sites.
const ROBOTS_AGE: Duration = Duration::from_hours(1);
const MOST_SITES: u64 = 10_000;

/// The longest wait that a server may ask for at a time, and how old a job may become by that.
const LONGEST_WAIT: Duration = Duration::from_hours(1);
const OLDEST: SignedDuration = SignedDuration::from_hours(24);

/// A page that was fetched.
#[derive(Debug)]
pub struct Page {
    /// Where it was found, after all redirects.
    pub url: Url,
    /// All of it.
    pub text: String,
    /// Whether the text is HTML.
    pub is_html: bool,
}

/// The web, as far as it may be called.
pub struct Web {
    client: BoxCloneSyncService<Request<Empty<Bytes>>, Response<Body>, BoxError>,
    is_allowed: fn(IpAddr) -> bool,
    patience: Duration,
    host_rate: NonZeroU32,
    robots: Cache<String, Arc<Robots>>,
}

/// What a server answers.
enum Answer {
    Moved(Url),
    Here(Box<Response<Body>>),
}

type Body = DecompressionBody<Incoming>;

impl Web {
    /// The web at these addresses, with the pages a second that all workers fetch from a host, and the time that a
    /// server may be silent.
    ///
    /// # Panics
    ///
    /// Where the system has no certificates.
    #[must_use]
    pub fn new(is_allowed: fn(IpAddr) -> bool, host_rate: NonZeroU32, patience: Duration) -> Self {
        let resolver = service_fn(move |name| resolve(name, is_allowed));
        let mut connector = HttpConnector::new_with_resolver(resolver);
        connector.enforce_http(false);
        let connector = HttpsConnectorBuilder::new()
            .with_provider_and_native_roots(ring::default_provider())
            .expect("the system has certificates")
            .https_or_http()
            .enable_http1()
            .wrap_connector(connector);
        // No connection to a stranger stays open.
        let client =
            Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build(connector);
        let client = Decompression::new(client).map_err(BoxError::from);
        let client = BoxCloneSyncService::new(client);
        let robots = Cache::builder().max_capacity(MOST_SITES).time_to_live(ROBOTS_AGE).build();
        Self { client, is_allowed, patience, host_rate, robots }
    }

    /// Asks for a permission to call the host of this URL.
    pub(crate) async fn permission(&self, url: &Url, cx: &Context) -> Result<(), Failure> {
        let host = url.host_str().unwrap_or_default().trim_end_matches('.');
        cx.permission(&format!("host {host}"), self.host_rate).await
    }

    /// The page at this URL, for whose host there is a permission; each further host that it leads to is asked for.
    ///
    /// # Errors
    ///
    /// [`Failure::Reject`] where the server or its rules say that there is no such page for us, [`Failure::RetryAfter`]
    /// where it names a time, and [`Failure::Retry`] where it may only be unwell.
    pub async fn page(&self, mut url: Url, cx: &Context) -> Result<Page, Failure> {
        for _ in 0..=MOST_REDIRECTS {
            if !self.robots(&url, cx).await?.is_url_allowed(&url) {
                return Err(Failure::reject(format!("robots.txt does not allow {url}")));
            }
            match self.get(&url, cx).await? {
                Answer::Moved(next) => {
                    if next.host() != url.host() {
                        self.permission(&next, cx).await?;
                    }
                    url = next;
                }
                Answer::Here(response) => return self.read(url, *response).await,
            }
        }
        Err(Failure::reject(format!("more than {MOST_REDIRECTS} redirects")))
    }

    /// The rules of the site that this page is on (RFC 9309).
    async fn robots(&self, page: &Url, cx: &Context) -> Result<Arc<Robots>, Failure> {
        let site = page.origin().ascii_serialization();
        if let Some(known) = self.robots.get(&site).await {
            return Ok(known);
        }
        let (mut url, mut redirects) = (robots_url(page)?, 0);
        let rules = loop {
            match self.get(&url, cx).await? {
                Answer::Moved(_) if redirects == MOST_REDIRECTS => break Robots::allow_all(),
                Answer::Moved(next) => (url, redirects) = (next, redirects + 1),
                Answer::Here(response) if !response.status().is_success() => {
                    break Robots::allow_all();
                }
                Answer::Here(response) => {
                    break Robots::parse(&self.body(*response, BYTE_LIMIT).await?.0, AGENT);
                }
            }
        };
        let rules = Arc::new(rules);
        self.robots.insert(site, Arc::clone(&rules)).await;
        Ok(rules)
    }

    /// Asks once, at an address that is allowed. What may only be unwell is a failure.
    async fn get(&self, url: &Url, cx: &Context) -> Result<Answer, Failure> {
        // An address is not looked up, so the resolver does not see it.
        let host = url.host_str().unwrap_or_default();
        let address = host.trim_matches(['[', ']']).parse();
        if address.is_ok_and(|address| !(self.is_allowed)(address)) {
            return Err(Failure::reject(NotPublic(host.to_owned())));
        }
        let request = Request::get(url.as_str()).header(USER_AGENT, AGENT).body(Empty::new());
        let request = request.map_err(Failure::reject)?;
        let response = self.patiently(self.client.clone().oneshot(request)).await?;
        let response = response.map_err(failure)?;
        let status = response.status();
        let header = |name| response.headers().get(name).and_then(|value| value.to_str().ok());
        if let Some(next) = header(LOCATION).filter(|_| status.is_redirection()) {
            let next = url.join(next).map_err(Failure::reject)?;
            return Ok(Answer::Moved(check(next.as_str()).map_err(Failure::reject)?));
        }
        if !(status.is_server_error() || matches!(status.as_u16(), 408 | 429)) {
            return Ok(Answer::Here(Box::new(response)));
        }
        let reason = format!("the server answered {status}");
        match header(RETRY_AFTER).and_then(retry_after) {
            None => Err(Failure::retry(reason)),
            // A wait spends no attempt, so this is what ends a job whose server asks for one each time.
            Some(_) if workqueue::now().duration_since(cx.id().made_at()) > OLDEST => {
                Err(Failure::reject(reason))
            }
            Some(wait) => Err(Failure::RetryAfter(wait, reason.into())),
        }
    }

    async fn read(&self, url: Url, response: Response<Body>) -> Result<Page, Failure> {
        let status = response.status();
        if !status.is_success() {
            return Err(Failure::reject(format!("the server answered {status}")));
        }
        let kind = response.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
        let kind: Option<Mime> = kind.and_then(|kind| kind.parse().ok());
        let is_html = match kind.as_ref().map_or("of no type", Mime::essence_str) {
            "text/html" | "application/xhtml+xml" => true,
            "text/plain" => false,
            other => return Err(Failure::reject(format!("it is {other}, neither HTML nor text"))),
        };
        let (bytes, is_cut) = self.body(response, MOST_BYTES).await?;
        if is_cut {
            return Err(Failure::reject(format!("the page is larger than {MOST_BYTES} bytes")));
        }
        let named = kind.as_ref().and_then(|kind| kind.get_param(mime::CHARSET));
        let named = named.and_then(|charset| Encoding::for_label(charset.as_str().as_bytes()));
        let encoding = named.or_else(|| declared(&bytes).filter(|_| is_html)).unwrap_or(UTF_8);
        // A byte order mark counts more.
        Ok(Page { url, text: encoding.decode(&bytes).0.into_owned(), is_html })
    }

    /// So many bytes of a body, and whether there are more. It stops to read there.
    async fn body(
        &self,
        response: Response<Body>,
        most: usize,
    ) -> Result<(Vec<u8>, bool), Failure> {
        let (mut body, mut bytes) = (response.into_body(), Vec::new());
        while let Some(frame) = self.patiently(body.frame()).await? {
            let chunk = frame.map_err(Failure::Retry)?.into_data().unwrap_or_default();
            bytes.extend_from_slice(&chunk);
            if bytes.len() > most {
                return Ok((bytes, true));
            }
        }
        Ok((bytes, false))
    }

    /// What a server does, unless it takes too long.
    async fn patiently<T>(&self, answer: impl Future<Output = T>) -> Result<T, Failure> {
        let silent = |_| Failure::retry(format!("the server was silent for {:?}", self.patience));
        timeout(self.patience, answer).await.map_err(silent)
    }
}

/// No attempt reaches a host that is not public.
fn failure(error: BoxError) -> Failure {
    let mut causes = successors(Some(&*error as &(dyn Error + 'static)), |&cause| cause.source());
    match causes.find_map(|cause| cause.downcast_ref()) {
        Some(NotPublic(host)) => Failure::reject(NotPublic(host.clone())),
        None => Failure::Retry(error),
    }
}

/// A number of seconds, or a date.
fn retry_after(text: &str) -> Option<Duration> {
    let seconds = text.parse().ok().map(Duration::from_secs);
    let until = || httpdate::parse_http_date(text).ok()?.duration_since(SystemTime::now()).ok();
    seconds.or_else(until).map(|wait| wait.min(LONGEST_WAIT))
}

/// The encoding that HTML declares in its first kilobyte.
fn declared(html: &[u8]) -> Option<&'static Encoding> {
    let head = String::from_utf8_lossy(&html[..html.len().min(1024)]).to_ascii_lowercase();
    let (_, label) = head.split_once("charset=")?;
    let is_end = |sign: char| sign.is_whitespace() || "\"'/>;".contains(sign);
    let label = label.trim_start_matches(['"', '\'']).split(is_end).next()?;
    Encoding::for_label(label.as_bytes())
}
