//! A web server for one test. Each of its pages misbehaves in its own way.

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::pending;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::body::{Body, Bytes};
use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::response::{IntoResponse, Redirect, Response};
use axum::{Router, serve};
use flate2::Compression;
use flate2::write::GzEncoder;
use futures_util::stream;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

pub const PAGE: &str = "<!doctype html><title>Of  foxes</title><style>p { color: red }</style>
    <p>The fox &amp; the <a href='/hole?a=1#b'>hole</a>.</p><script>document.write('<p>the script</p>')</script>
    <a href='hole?a=1#b'>The</a> <a href='javascript:alert(1)'>trap</a>";

/// A web server, and the pages that were requested so far.
#[derive(Clone)]
pub struct Site {
    pub addr: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
    /// Releases the answers of `/gate`.
    pub gate: Arc<Semaphore>,
}

impl Site {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let site = Self { addr, asked: Arc::default(), gate: Arc::new(Semaphore::new(0)) };
        let routes = Router::new().fallback(answer).with_state(site.clone());
        tokio::spawn(async move { serve(listener, routes).await });
        site
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.addr)
    }

    /// The requested pages, in order, without `robots.txt`.
    pub fn asked(&self) -> Vec<String> {
        let asked = self.asked.lock().unwrap().clone();
        asked.into_iter().filter(|path| path != "/robots.txt").collect()
    }
}

async fn answer(
    State(site): State<Site>,
    Query(query): Query<HashMap<String, String>>,
    uri: Uri,
    headers: HeaderMap,
) -> Response {
    site.asked.lock().unwrap().push(uri.path().to_owned());
    let before = site.asked().iter().filter(|path| *path == uri.path()).count();
    let of_kind =
        |kind: &'static str, body: Body| ([(header::CONTENT_TYPE, kind)], body).into_response();
    let page = || of_kind("text/html; charset=utf-8", PAGE.into());
    match uri.path() {
        "/robots.txt" if headers[header::HOST].as_bytes().starts_with(b"localhost") => {
            Redirect::to("/robots.txt").into_response()
        }
        "/robots.txt" => of_kind("text/plain", "User-agent: *\nDisallow: /private".into()),
        "/latin-1" => of_kind("text/plain; charset=ISO-8859-1", b"caf\xe9"[..].into()),
        "/declared" => of_kind("text/html", b"<meta charset='latin1'>caf\xe9"[..].into()),
        "/declared-wrongly" => of_kind("text/html", "<meta charset='utf-16'>café".into()),
        "/marked" => of_kind("text/plain; charset=latin1", "\u{feff}café".into()),
        "/binary" => of_kind("application/pdf", "%PDF".into()),
        "/loop" => Redirect::to("/loop").into_response(),
        "/away" => Redirect::to(&query["to"]).into_response(),
        "/silent" => pending().await,
        "/missing" => StatusCode::NOT_FOUND.into_response(),
        "/unwell" => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
        "/flaky" if before <= 2 => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
        "/busy" => (StatusCode::TOO_MANY_REQUESTS, [(header::RETRY_AFTER, "7")]).into_response(),
        "/endless" => {
            let chunk = Bytes::from(vec![b'a'; 64 << 10]);
            let chunks = stream::repeat_with(move || Ok::<_, Infallible>(chunk.clone()));
            of_kind("text/plain", Body::from_stream(chunks))
        }
        "/bomb" => {
            let mut bomb = GzEncoder::new(Vec::new(), Compression::best());
            bomb.write_all(&vec![b'a'; 64 << 20]).unwrap();
            let headers =
                [(header::CONTENT_TYPE, "text/plain"), (header::CONTENT_ENCODING, "gzip")];
            (headers, bomb.finish().unwrap()).into_response()
        }
        "/zstd" => {
            let headers =
                [(header::CONTENT_TYPE, "text/plain"), (header::CONTENT_ENCODING, "zstd")];
            (headers, "a").into_response()
        }
        "/broken" => {
            let chunks = [Ok(Bytes::from_static(b"a")), Err(io::Error::other("on purpose"))];
            of_kind("text/plain", Body::from_stream(stream::iter(chunks)))
        }
        "/gate" => {
            site.gate.acquire().await.unwrap().forget();
            page()
        }
        _ => page(),
    }
}
