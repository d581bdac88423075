//! The real programs.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use testkit::eventually::eventually;
use workqueue::{Connection, NatsSettings};

use crate::site::Site;
use crate::system::System;

#[tokio::test]
async fn page_is_counted_once_a_worker_is_there() {
    let (system, site) = (System::start().await, Site::start().await);
    let location = system.count(&site.url("/page")).await;
    assert_eq!(system.get(&location).await["state"], "waiting");
    let _worker = system.worker("worker", &[]);
    let job = system.becomes("done", &format!("{location}?top=2")).await;
    assert_eq!(job["output"]["words"], json!([["the", 3], ["fox", 1]]));
    assert_eq!((&job["output"]["total"], &job["worker"]), (&json!(6), &json!("worker")));

    let again = system.count(&site.url("/page")).await;
    system.becomes("done", &again).await;
    let top = system.get("/words?top=1").await;
    assert_eq!(top, json!([["the", 6]]));
    let list = system.get("/word-counts").await;
    assert_eq!((&list["jobs"], &list["done"]), (&json!(2), &json!(2)));
    assert_eq!(format!("/word-counts/{}", list["latest"][0]["id"].as_str().unwrap()), again);
}

#[tokio::test]
async fn unknown_task_is_a_dead_letter_that_names_those_known() {
    let (system, site) = (System::start().await, Site::start().await);
    let _worker = system.worker("worker", &[]);
    let submit = async |task: &str, input: Value| {
        let accepted = system.ask("POST", "/tasks", &json!({ "task": task, "input": input })).await;
        format!("/{}", accepted.header("location").unwrap())
    };
    let url = json!({ "url": site.url("/page") });
    let title = system.becomes("done", &submit("page_title", url.clone()).await).await;
    assert_eq!(title["output"], json!({ "title": "Of foxes" }));
    for (task, input, reason) in [
        ("sheep", url, "failed: there is no task 'sheep'; known are word_count, links, page_title"),
        ("links", json!({}), r#"failed: the input of links has to be {"url": …}"#),
    ] {
        let failed = system.becomes("failed", &submit(task, input).await).await;
        assert_eq!(failed["reason"], reason);
    }
}

#[tokio::test]
async fn job_whose_result_is_a_dead_letter_has_failed() {
    let system = System::start().await;
    let location = system.count("http://example.com/").await;
    let settings = NatsSettings::at(system.broker.url());
    let nats = Connection::establish(&settings, "test", |_connected| {}).await.unwrap();
    let subject = location.replace("/word-counts/", "results.");
    let stored = nats.context().publish(subject, "no result".into()).await.unwrap();
    stored.await.unwrap();
    let failed = system.becomes("failed", &location).await;
    let reason = failed["reason"].as_str().unwrap();
    assert!(reason.starts_with("malformed"), "{reason}");
}

#[tokio::test]
async fn invalid_request_is_refused_with_a_hint() {
    let system = System::start().await;
    for (path, body, status, words) in [
        ("/word-counts", json!({ "url": "file:///etc/passwd" }), 422, "write http:// or https://"),
        ("/word-counts", json!({}), 422, "missing field `url`"),
        (
            "/word-counts/batch",
            json!({ "urls": ["http://a.example.com", "example.com"] }),
            422,
            "urls[1]: it is no address of a page: write http://",
        ),
        (
            "/word-counts/batch",
            json!({ "urls": vec!["http://example.com"; 10_001] }),
            422,
            "at most 10000",
        ),
        ("/tasks", json!({ "task": "links" }), 422, "missing field `input`"),
    ] {
        let refused = system.ask("POST", path, &body).await;
        let problem = refused.json();
        assert_eq!((refused.status, &problem["status"]), (status, &json!(status)), "{refused:?}");
        assert_eq!(refused.header("content-type"), Some("application/problem+json"));
        assert!(problem["detail"].as_str().unwrap().contains(words), "{problem}");
    }
    for path in ["/word-counts/0190", "/word-counts/01900000-0000-7000-8000-000000000000"] {
        assert_eq!(system.get(path).await["detail"], "there is no such job");
    }
    let refused =
        system.ask("PUT", "/schedules/a.b", &json!({ "url": "http://example.com" })).await;
    assert_eq!(refused.status, 422, "{refused:?}");
}

#[tokio::test]
async fn page_that_fails_twice_is_counted_at_the_third_attempt() {
    let (system, site) = (System::start().await, Site::start().await);
    let _worker = system.worker("worker", &[]);
    system.becomes("done", &system.count(&site.url("/flaky")).await).await;
    assert_eq!(site.asked(), ["/flaky"; 3]);
}

#[tokio::test]
async fn killed_worker_loses_nothing_and_counts_once() {
    let (system, site) = (System::start().await, Site::start().await);
    let mut victim = system.worker("victim", &[]);
    let location = system.count(&site.url("/gate")).await;
    let asked = async |times| {
        eventually("the page is asked for", async || match site.asked().len() {
            seen if seen == times => Ok(()),
            seen => Err(seen),
        })
        .await;
    };
    asked(1).await;
    victim.kill().await.unwrap();
    assert_eq!(system.get(&location).await["state"], "waiting");
    let _heir = system.worker("heir", &[]);
    asked(2).await;
    site.gate.add_permits(2);
    let job = system.becomes("done", &location).await;
    assert_eq!(job["worker"], "heir");
    let list = system.get("/word-counts").await;
    assert_eq!((&list["jobs"], &list["done"]), (&json!(1), &json!(1)));
}

#[tokio::test]
async fn two_workers_together_keep_the_rate_of_a_host() {
    let (system, site) = (System::start().await, Site::start().await);
    let workers = ["one", "other"].map(|name| system.worker(name, &[("HOST_RATE", "2")]));
    for worker in &workers {
        eventually("a worker is ready", async || worker.is_ready().await.then_some(()).ok_or(()))
            .await;
    }
    let begun = Instant::now();
    let urls = vec![site.url("/page"); 9];
    let accepted = system.ask("POST", "/word-counts/batch", &json!({ "urls": urls })).await;
    assert_eq!(accepted.json()["ids"].as_array().map(Vec::len), Some(9));
    // Another host does not wait for the limit of this one.
    let other = format!("http://localhost:{}/other", site.addr.port());
    system.becomes("done", &system.count(&other).await).await;
    let pages = |path| site.asked().iter().filter(|asked| *asked == path).count();
    eventually("all pages are fetched", async || match pages("/page") {
        9 => Ok(()),
        seen => Err(seen),
    })
    .await;
    // At two a second of the clock, five seconds are needed. The first and the last may be short.
    assert!(begun.elapsed() > Duration::from_secs(3), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn form_overtakes_a_batch_of_ten_thousand() {
    let (system, site) = (System::start().await, Site::start().await);
    let _worker = system.worker("worker", &[("CONCURRENCY", "1")]);
    let batch = async |pages: Vec<String>| {
        let accepted = system.ask("POST", "/word-counts/batch", &json!({ "urls": pages })).await;
        accepted.json()["ids"].as_array().unwrap().len()
    };
    batch(vec![site.url("/gate")]).await;
    eventually("the worker is at work", async || match site.asked().len() {
        1 => Ok(()),
        seen => Err(seen),
    })
    .await;
    let pages = (0..10_000).map(|page| site.url(&format!("/batch/{page}"))).collect();
    assert_eq!(batch(pages).await, 10_000);
    let location = system.count(&site.url("/form")).await;
    site.gate.add_permits(1);
    system.becomes("done", &location).await;
    // A page of the batch may have got a slot before that of the form, and each tenth slot is a fair one.
    let place = site.asked().iter().position(|path| path == "/form").unwrap();
    assert!(place <= 3, "{place}");
    assert_eq!(system.get("/word-counts").await["jobs"], 10_002);
}

#[tokio::test]
async fn schedule_counts_a_page_again_until_it_is_removed() {
    let (system, site) = (System::start().await, Site::start().await);
    let _worker = system.worker("worker", &[]);
    let body = json!({ "url": site.url("/page"), "every": "1s" });
    let set = system.ask("PUT", "/schedules/foxes", &body).await;
    assert_eq!(set.status, 204, "{set:?}");
    let job = json!({ "task": "word_count", "input": { "url": site.url("/page") } });
    let listed = json!([{ "name": "foxes", "recurrence": "every 1s", "job": job }]);
    assert_eq!(system.get("/schedules").await, listed);
    eventually("it is counted twice", async || match system.get("/word-counts").await {
        list if list["done"].as_u64() >= Some(2) => Ok(()),
        list => Err(list),
    })
    .await;
    let remove = async || system.ask("DELETE", "/schedules/foxes", &Value::Null).await.status;
    assert_eq!((remove().await, remove().await), (204, 404));
    assert_eq!(system.get("/schedules").await, json!([]));
}

#[tokio::test]
async fn private_address_is_refused_unless_a_setting_allows_it() {
    let (system, site) = (System::start().await, Site::start().await);
    let _worker = system.worker("worker", &[("ALLOW_PRIVATE", "false")]);
    let failed = system.becomes("failed", &system.count(&site.url("/page")).await).await;
    let reason = failed["reason"].as_str().unwrap();
    assert!(reason.starts_with("failed: 127.0.0.1 is not on the public internet"), "{reason}");
    assert!(site.asked().is_empty());
}

#[tokio::test]
async fn page_of_the_front_runs_no_script_but_its_own() {
    let system = System::start().await;
    for (path, kind) in
        [("/", "text/html"), ("/page.js", "text/javascript"), ("/page.css", "text/css")]
    {
        let file = system.ask("GET", path, &Value::Null).await;
        let policy = file.header("content-security-policy").unwrap();
        assert!(policy.starts_with("default-src 'none'; script-src 'self'; "), "{policy}");
        assert!(file.header("content-type").unwrap().starts_with(kind), "{file:?}");
        assert!(!file.body.contains("innerHTML") && !file.body.contains("<script>"), "{path}");
    }
}
