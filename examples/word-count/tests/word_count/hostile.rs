//! The worker's client against servers that misbehave.

use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroU32;
use std::time::Duration;

use serde_json::json;
use testkit::eventually::eventually;
use testkit::reserved_ports::ReservedPorts;
use word_count::{Kind, Page, Web, check};
use workqueue::testing::Recorder;
use workqueue::{Attempt, Failure};

use crate::site::Site;

/// In these tests only the address of their server counts as public.
fn web() -> Web {
    patient_web(Duration::from_mins(1))
}

fn patient_web(patience: Duration) -> Web {
    let is_allowed = |address| address == IpAddr::V4(Ipv4Addr::LOCALHOST);
    Web::new(is_allowed, NonZeroU32::MIN, patience)
}

async fn fetch(web: &Web, url: &str) -> Result<Page, Failure> {
    web.page(check(url).unwrap(), &Recorder::new().context()).await
}

/// The reason for which a page becomes a dead letter at its first attempt.
async fn rejection(web: &Web, url: &str) -> String {
    match fetch(web, url).await {
        Err(failure @ Failure::Reject(_)) => failure.to_string(),
        other => panic!("{url}: {other:?}"),
    }
}

#[tokio::test]
async fn page_is_read_in_its_own_encoding() {
    let (site, web) = (Site::start().await, web());
    for path in ["/latin-1", "/declared", "/declared-wrongly", "/marked"] {
        let page = fetch(&web, &site.url(path)).await.unwrap();
        assert!(page.text.ends_with("café"), "{path}: {}", page.text);
    }
}

#[tokio::test]
async fn redirects_are_followed_to_the_page_and_not_for_ever() {
    let (site, web) = (Site::start().await, web());
    let page = fetch(&web, &site.url("/away?to=/page")).await.unwrap();
    assert_eq!(page.url.as_str(), site.url("/page"));
    assert_eq!(rejection(&web, &site.url("/loop")).await, "more than 5 redirects");
    assert_eq!(site.asked().iter().filter(|path| *path == "/loop").count(), 6);
}

#[tokio::test]
async fn redirect_to_an_address_that_is_not_allowed_is_rejected() {
    let (site, web) = (Site::start().await, web());
    let port = site.addr.port();
    for to in ["127.0.0.2", "[::1]", "[::ffff:127.0.0.2]", "0x7f000002", "169.254.169.254"] {
        let away = site.url(&format!("/away?to=http://{to}:{port}/page"));
        let reason = rejection(&web, &away).await;
        assert!(reason.contains("is not on the public internet"), "{to}: {reason}");
    }
    let reason = rejection(&web, &site.url("/away?to=file:///etc/passwd")).await;
    assert!(reason.contains("write http:// or https://"), "{reason}");
    assert!(site.asked().iter().all(|path| path == "/away"), "{:?}", site.asked());
}

#[tokio::test]
async fn name_that_resolves_to_a_private_address_is_rejected() {
    let site = Site::start().await;
    let url = format!("http://localhost:{}/page", site.addr.port());
    let public = Web::new(word_count::is_public, NonZeroU32::MIN, Duration::from_mins(1));
    let reason = rejection(&public, &url).await;
    assert!(reason.starts_with("localhost is not on the public internet"), "{reason}");
    // The same name works if its address is allowed.
    fetch(&web(), &url).await.unwrap();
    assert_eq!(site.asked(), ["/page"]);
}

#[tokio::test]
async fn large_and_foreign_pages_are_rejected() {
    let (site, web) = (Site::start().await, web());
    for (path, words) in [
        ("/endless", "larger than 5000000 bytes"),
        ("/bomb", "larger than 5000000 bytes"),
        ("/binary", "it is application/pdf, neither HTML nor text"),
        ("/zstd", "the content encoding zstd is unknown"),
        ("/missing", "the server answered 404 Not Found"),
        ("/private/page", "robots.txt does not allow"),
    ] {
        let reason = rejection(&web, &site.url(path)).await;
        assert!(reason.contains(words), "{path}: {reason}");
    }
    assert!(!site.asked().contains(&"/private/page".to_owned()));
}

#[tokio::test]
async fn failing_broken_or_silent_server_is_tried_again() {
    let site = Site::start().await;
    for path in ["/unwell", "/broken"] {
        let failed = fetch(&web(), &site.url(path)).await;
        assert!(matches!(failed, Err(Failure::Retry(_))), "{path}: {failed:?}");
    }
    // The server never answers, so any time limit is exceeded.
    let impatient = patient_web(Duration::from_secs(1));
    let reason = eventually("the rules of the site are known in time", async || {
        let failed = fetch(&impatient, &site.url("/silent")).await.unwrap_err();
        let is_asked = site.asked().contains(&"/silent".to_owned());
        if is_asked { Ok(failed.to_string()) } else { Err(failed.to_string()) }
    })
    .await;
    assert_eq!(reason, "the server was silent for 1s");
    let (_held, port) = ReservedPorts::free().unwrap();
    let nothing_listens = fetch(&web(), &format!("http://127.0.0.1:{port}/")).await;
    assert!(matches!(nothing_listens, Err(Failure::Retry(_))), "{nothing_listens:?}");
}

#[tokio::test]
async fn server_that_asks_for_a_wait_has_it_for_a_day() {
    let (site, web) = (Site::start().await, web());
    let failed = fetch(&web, &site.url("/busy")).await;
    let waits =
        |failed: &Failure| matches!(failed, Failure::RetryAfter(wait, _) if wait.as_secs() == 7);
    assert!(failed.as_ref().is_err_and(waits), "{failed:?}");
    // A job of this age in hours.
    let failure_at = async |age: i64| {
        let made = workqueue::now().as_millisecond() - age * 3_600_000;
        let id = format!("{:08x}-{:04x}-7000-8000-000000000000", made >> 16, made & 0xffff);
        let context = Recorder::new().context_of(id.parse().unwrap(), Attempt::new(1));
        web.page(check(&site.url("/busy")).unwrap(), &context).await.unwrap_err()
    };
    let failed = failure_at(5).await;
    let is_longer = matches!(failed, Failure::RetryAfter(wait, _) if wait.as_secs() >= 1800);
    assert!(is_longer, "{failed:?}");
    let failed = failure_at(25).await;
    assert!(matches!(failed, Failure::Retry(_)), "{failed:?}");
}

#[tokio::test]
async fn site_whose_rules_redirect_in_a_circle_has_none() {
    let (site, web) = (Site::start().await, web());
    let page = |host: &str| format!("http://{host}:{}/private/page", site.addr.port());
    assert!(rejection(&web, &page("127.0.0.1")).await.contains("robots.txt does not allow"));
    fetch(&web, &page("localhost")).await.unwrap();
}

#[test]
fn each_task_reads_its_part_of_a_page() {
    let page = Page {
        url: check("https://example.com/a/b").unwrap(),
        text: crate::site::PAGE.to_owned(),
        is_html: true,
    };
    let read = |task| (Kind::named(task).unwrap().read)(&page);
    let hole = ["https://example.com/a/hole?a=1#b", "https://example.com/hole?a=1#b"];
    assert_eq!(read("links"), json!({ "total": 2, "links": hole }));
    assert_eq!(read("page_title"), json!({ "title": "Of foxes" }));
    let words = json!([["the", 3], ["fox", 1], ["hole", 1], ["trap", 1]]);
    assert_eq!(read("word_count"), json!({ "total": 6, "distinct": 4, "words": words }));
}

#[test]
fn result_of_any_page_fits_into_a_message() {
    let many = (0..100_000).map(|number| format!("w{number} <a href=l{number}>"));
    let url = format!("https://example.com/{}/", "a".repeat(1900));
    let page = Page { url: check(&url).unwrap(), text: many.collect(), is_html: true };
    for kind in &word_count::TASKS {
        let result = (kind.read)(&page).to_string();
        assert!(result.len() < 128 << 10, "{}: {}", kind.name, result.len());
    }
}
