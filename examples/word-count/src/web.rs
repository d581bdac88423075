//! Fetches pages from an untrusted web. There is a limit for each way in which a server can misbehave, and beyond it the
//! attempt ends with a retry or a dead letter.

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
use hyper::header::{CONTENT_ENCODING, CONTENT_TYPE, LOCATION, RETRY_AFTER, USER_AGENT};
use hyper::http::HeaderName;
use hyper::{Request, Response};
use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::client::legacy::Client;
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
use url::{Origin, Url};
use workqueue::{Context, Failure};

use crate::address::{NotPublic, check, connect};

/// Our name in `robots.txt`, and for servers.
const AGENT: &str = "decoupled-word-count";

/// The most bytes of a page, after decompression.
const MOST_BYTES: usize = 5_000_000;

const MOST_REDIRECTS: usize = 5;

/// The time for which the rules of a site are cached, and about the most bytes of the cache.
const ROBOTS_AGE: Duration = Duration::from_hours(1);
const ROBOTS_BYTES: u64 = 64 << 20;

/// The longest wait that a server may ask for at a time, and the greatest age of a job that waits.
const LONGEST_WAIT: Duration = Duration::from_hours(1);
const OLDEST: SignedDuration = SignedDuration::from_hours(24);

/// A page that was fetched.
#[derive(Debug)]
pub struct Page {
    /// Its URL, after all redirects.
    pub url: Url,
    /// The whole text.
    pub text: String,
    /// Whether the text is HTML.
    pub is_html: bool,
}

/// A client for the allowed addresses of the web.
pub struct Web {
    client: BoxCloneSyncService<Request<Empty<Bytes>>, Answer, BoxError>,
    patience: Duration,
    host_rate: NonZeroU32,
    robots: Cache<Origin, Arc<Robots>>,
}

/// The answer of a server.
type Answer = Response<DecompressionBody<Incoming>>;

impl Web {
    /// A client for these addresses, with the most pages a second that all workers fetch from a host, and the longest
    /// silence of a server.
    ///
    /// # Panics
    ///
    /// If the system has no certificates.
    #[must_use]
    pub fn new(is_allowed: fn(IpAddr) -> bool, host_rate: NonZeroU32, patience: Duration) -> Self {
        let connector = HttpsConnectorBuilder::new()
            .with_provider_and_native_roots(ring::default_provider())
            .expect("the system has certificates")
            .https_or_http()
            .enable_http1()
            .wrap_connector(service_fn(move |url| connect(url, is_allowed)));
        // No connection to an untrusted server stays open.
        let client =
            Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build(connector);
        let client = BoxCloneSyncService::new(Decompression::new(client).map_err(BoxError::from));
        let robots = Cache::builder().max_capacity(ROBOTS_BYTES).weigher(weight);
        let robots = robots.time_to_live(ROBOTS_AGE).build();
        Self { client, patience, host_rate, robots }
    }

    /// Asks for a permit to call the host of this URL.
    pub(crate) async fn permit(&self, url: &Url, cx: &Context) -> Result<(), Failure> {
        let host = url.host_str().unwrap_or_default().trim_end_matches('.');
        cx.permit(&format!("host {host}"), self.host_rate).await
    }

    /// The page at this URL. The caller has a permit for its host; this asks for one for each other host of a
    /// redirect.
    ///
    /// # Errors
    ///
    /// If the server or its rules refuse the page ([`Failure::Reject`]), if the server names a time to wait
    /// ([`Failure::RetryAfter`]), or if a retry may help ([`Failure::Retry`]).
    pub async fn page(&self, url: Url, cx: &Context) -> Result<Page, Failure> {
        let (url, answer) = self.follow(url, true, cx).await?;
        let status = answer.status();
        if !status.is_success() {
            return Err(Failure::reject(format!("the server answered {status}")));
        }
        let kind: Option<Mime> = header(&answer, CONTENT_TYPE).and_then(|it| it.parse().ok());
        let is_html = match kind.as_ref().map_or("of no type", Mime::essence_str) {
            "text/html" | "application/xhtml+xml" => true,
            "text/plain" => false,
            other => return Err(Failure::reject(format!("it is {other}, neither HTML nor text"))),
        };
        let bytes = self.body(answer, MOST_BYTES).await?;
        if bytes.len() > MOST_BYTES {
            return Err(Failure::reject(format!("the page is larger than {MOST_BYTES} bytes")));
        }
        let named = kind.as_ref().and_then(|kind| kind.get_param(mime::CHARSET));
        let named = named.and_then(|charset| Encoding::for_label(charset.as_str().as_bytes()));
        let encoding = named.or_else(|| declared(&bytes).filter(|_| is_html)).unwrap_or(UTF_8);
        // A byte order mark overrides the encoding.
        Ok(Page { url, text: encoding.decode(&bytes).0.into_owned(), is_html })
    }

    /// Follows all redirects, each checked as the first URL was, and returns the last answer. The rules of a site have
    /// to allow a page, but not the rules themselves.
    async fn follow(
        &self,
        mut url: Url,
        is_page: bool,
        cx: &Context,
    ) -> Result<(Url, Answer), Failure> {
        for _ in 0..=MOST_REDIRECTS {
            // In a box, because the rules are fetched by this function as well.
            if is_page && !Box::pin(self.robots(&url, cx)).await?.is_url_allowed(&url) {
                return Err(Failure::reject(format!("robots.txt does not allow {url}")));
            }
            let answer = self.get(&url, cx).await?;
            let next = header(&answer, LOCATION).filter(|_| answer.status().is_redirection());
            let Some(next) = next else { return Ok((url, answer)) };
            let next = check(url.join(next).map_err(Failure::reject)?.as_str());
            let next = next.map_err(Failure::reject)?;
            if next.host() != url.host() {
                self.permit(&next, cx).await?;
            }
            url = next;
        }
        Err(Failure::reject(format!("more than {MOST_REDIRECTS} redirects")))
    }

    /// The rules of the page's site (RFC 9309). A site without rules allows all pages.
    async fn robots(&self, page: &Url, cx: &Context) -> Result<Arc<Robots>, Failure> {
        let site = page.origin();
        if let Some(known) = self.robots.get(&site).await {
            return Ok(known);
        }
        let fetching = async {
            let (_, answer) = self.follow(robots_url(page)?, false, cx).await?;
            let has_rules = answer.status().is_success();
            if has_rules { self.body(answer, BYTE_LIMIT).await } else { Ok(Vec::new()) }
        };
        let rules = match fetching.await {
            // Such as rules with too many redirects, or of an unknown encoding.
            Err(Failure::Reject(_)) => Vec::new(),
            fetched => fetched?,
        };
        let rules = Arc::new(Robots::parse(&rules, AGENT));
        self.robots.insert(site, Arc::clone(&rules)).await;
        Ok(rules)
    }

    /// Sends one request. An answer that a later attempt may change is a failure.
    async fn get(&self, url: &Url, cx: &Context) -> Result<Answer, Failure> {
        let request = Request::get(url.as_str()).header(USER_AGENT, AGENT).body(Empty::new());
        let request = request.map_err(Failure::reject)?;
        let answer = self.patiently(self.client.clone().oneshot(request)).await?;
        let answer = answer.map_err(failure)?;
        let status = answer.status();
        if !(status.is_server_error() || matches!(status.as_u16(), 408 | 429)) {
            return Ok(answer);
        }
        let reason = format!("the server answered {status}");
        // A wait spends no attempt. So each is at least a tenth of the job's age, and after a day there are only
        // attempts.
        let age = workqueue::now().duration_since(cx.id().made_at());
        let least = age.unsigned_abs() / 10;
        Err(match header(&answer, RETRY_AFTER).and_then(retry_after).filter(|_| age < OLDEST) {
            None => Failure::retry(reason),
            Some(wait) => Failure::RetryAfter(wait.max(least).min(LONGEST_WAIT), reason.into()),
        })
    }

    /// Reads a body, and stops after more than `most` bytes.
    async fn body(&self, mut answer: Answer, most: usize) -> Result<Vec<u8>, Failure> {
        // The client removes this header when it decompresses.
        let encoding =
            header(&answer, CONTENT_ENCODING).filter(|it| !it.eq_ignore_ascii_case("identity"));
        if let Some(encoding) = encoding {
            return Err(Failure::reject(format!("the content encoding {encoding} is unknown")));
        }
        let mut bytes = Vec::new();
        while bytes.len() <= most
            && let Some(frame) = self.patiently(answer.frame()).await?
        {
            let frame = frame.map_err(Failure::Retry)?;
            bytes.extend_from_slice(&frame.into_data().unwrap_or_default());
        }
        Ok(bytes)
    }

    /// Waits for a server, within the longest silence.
    async fn patiently<T>(&self, doing: impl Future<Output = T>) -> Result<T, Failure> {
        let silent = |_| Failure::retry(format!("the server was silent for {:?}", self.patience));
        timeout(self.patience, doing).await.map_err(silent)
    }
}

/// The value of a header, if it is text.
fn header(answer: &Answer, name: HeaderName) -> Option<&str> {
    answer.headers().get(name)?.to_str().ok()
}

/// The failure for an error of the client: permanent for a host that is not public.
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
    seconds.or_else(until)
}

/// About the memory of the rules of a site: a hostile one may have 64,000.
fn weight(_site: &Origin, robots: &Arc<Robots>) -> u32 {
    let rules = robots.rules().iter().map(|rule| 100 + rule.pattern().len());
    let sitemaps = robots.sitemaps().iter().map(|url| 100 + url.as_str().len());
    u32::try_from(1000 + rules.chain(sitemaps).sum::<usize>()).unwrap_or(u32::MAX)
}

/// The encoding that HTML declares in its first kilobyte. Such HTML is not in UTF-16, whatever it declares.
fn declared(html: &[u8]) -> Option<&'static Encoding> {
    let head = String::from_utf8_lossy(&html[..html.len().min(1024)]).to_ascii_lowercase();
    let (_, label) = head.split_once("charset=")?;
    let is_end = |sign: char| sign.is_whitespace() || "\"'/>;".contains(sign);
    let label = label.trim_start_matches(['"', '\'']).split(is_end).next()?;
    Encoding::for_label(label.as_bytes()).map(Encoding::output_encoding)
}
