//! The page in light and dark, on a phone, by keyboard, for a screen reader, and without motion.

use std::path::Path;

use async_nats::HeaderMap;
use contract::facts::RECEIVED;
use contract::queues::REQUESTS;
use testkit::eventually::eventually;
use testkit::http;
use testkit::process::logged;
use testkit::target_directory::directory;
use workqueue::JobId;

use crate::browser::Browser;
use crate::deployment::{Deployment, Service, ready};
use crate::gateway::GatewayProcess;

/// The controls without a name for a screen reader.
const NAMELESS: &str = "return [...document.querySelectorAll('button, input, summary, [tabindex=\"0\"], svg')]
    .filter(it => !(it.innerText?.trim() || it.getAttribute('aria-label') || it.labels?.[0]?.innerText || it.closest('details')))
    .map(it => it.outerHTML.slice(0, 200))";

/// The id of the element that has the focus.
const FOCUSED: &str = "return document.activeElement.id || document.activeElement.className";

#[tokio::test]
async fn page_works_on_a_phone_by_keyboard_and_screen_reader() {
    let deployment = Deployment::start().await;
    let _generator = deployment.run(Service::Generator, "generator", &[]).await;
    let rate = [("REQUEST_RATE", "20")];
    let _requestor = deployment.run(Service::Requestor, "requestor", &rate).await;
    let gateway = GatewayProcess::start(&deployment).await;
    let browser = Browser::start().await;
    browser.open(&gateway.url()).await;
    browser.says("#last-rows tr", ":").await;
    for stage in ["waiting", "working", "storing", "marking"] {
        browser.says("#stages", stage).await;
    }
    for width in [320, 768, 1366, 1920] {
        browser.resize(width, 800).await;
        let wide =
            "return document.documentElement.scrollWidth - document.documentElement.clientWidth";
        assert_eq!(browser.run(wide).await, 0, "at {width} pixels one has to scroll sideways");
    }
    assert_eq!(browser.run(NAMELESS).await, serde_json::json!([]));
    browser.until("!document.querySelector('[aria-label*=\"${\"]')").await;

    let mut reached = Vec::new();
    for _ in 0..24 {
        browser.client.active_element().await.unwrap().send_keys("\u{e004}").await.unwrap();
        reached.push(browser.run(FOCUSED).await.as_str().unwrap_or_default().to_owned());
    }
    for wanted in ["skip", "audit-button", "plain", "find"] {
        assert!(reached.iter().any(|id| id == wanted), "{wanted} is not reached: {reached:?}");
    }
    // A dialog by keyboard: opened by Enter, closed by Escape.
    let row = browser.client.find(fantoccini::Locator::Css("#last-rows button")).await.unwrap();
    row.send_keys("\u{e007}").await.unwrap();
    browser.until("document.querySelector('#history').open").await;
    assert_eq!(browser.run(FOCUSED).await, "history-close");
    let close = browser.client.active_element().await.unwrap();
    close.send_keys("\u{e00c}").await.unwrap();
    browser.until("!document.querySelector('#history').open").await;

    let moving = "return document.getAnimations().filter(it => it.playState === 'running').length";
    browser.until(&format!("(() => {{ {moving} }})() > 0")).await;
    browser.prefers("prefers-reduced-motion", "reduce").await;
    browser.until(&format!("(() => {{ {moving} }})() === 0")).await;
    browser.until("document.querySelector('[role=status]#live')").await;
    assert_eq!(browser.complaints().await, [""; 0]);
}

/// The violations that axe finds, by the rules of WCAG 2.2 and its best practices.
pub(crate) const VIOLATIONS: &str =
    "return axe.run(document).then(({ violations }) => violations.map(({ id, nodes }) =>
    [id, ...nodes.map(({ html, failureSummary }) => `${html.slice(0, 200)}: ${failureSummary}`)]))";

pub(crate) const NO_AXE: &str = "axe is not there to judge the page; install it with .ci/browser";

#[tokio::test]
async fn axe_finds_no_violation() {
    let deployment = Deployment::start().await;
    let gateway = GatewayProcess::start(&deployment).await;
    logged(&gateway.process, "accepting requests").await;
    let subject = REQUESTS.subject(JobId::new());
    deployment.publish_raw(&subject, HeaderMap::new(), b"garbage").await;
    let ask = async |method: &str, path: &str, body: &str| {
        let headers = [("Content-Type", "application/json")];
        let answer = http::ask(gateway.addr, method, path, &headers, body).await.unwrap();
        assert!(answer.status < 300, "{answer:?}");
    };
    ask("POST", "/requests", "{}").await;
    ask("PUT", "/schedules/hourly", r#"{"every": "1h"}"#).await;
    let _generator = deployment.run(Service::Generator, "generator", &[]).await;
    let _requestor = deployment.run(Service::Requestor, "requestor", &[]).await;
    deployment.dead_letters(1).await;
    let browser = Browser::start().await;
    browser.open(&gateway.url()).await;
    browser.says("#letters .reason", "malformed").await;
    browser.says("#schedules-list", "hourly").await;
    browser.says("#last-rows tr", ":").await;
    browser.press("#requests-form button").await;
    browser.says("#requests-note", "the newest first").await;
    let axe = directory().join("axe/axe_playwright_python/axe.min.js");
    browser.run(&std::fs::read_to_string(axe).expect(NO_AXE)).await;
    for scheme in ["light", "dark"] {
        // Without motion, because axe would judge parts that are just appearing.
        let still = ("prefers-reduced-motion", "reduce");
        browser.prefer(&[("prefers-color-scheme", scheme), still]).await;
        for dialog in [None, Some("#last-rows button"), Some("#letter-1 > button")] {
            if let Some(opens) = dialog {
                browser.press(opens).await;
                browser.until("document.querySelector('dialog[open]')").await;
            }
            let found = browser.run(VIOLATIONS).await;
            assert_eq!(found, serde_json::json!([]), "{scheme}, {dialog:?}: {found:#}");
            browser.run("document.querySelector('dialog[open]')?.close()").await;
        }
        for [key, shows, back] in [
            [
                "?",
                "document.querySelector('#keys').open",
                "document.querySelector('#keys').close()",
            ],
            ["p", "document.documentElement.classList.contains('projector')", ""],
        ] {
            browser.types(key).await;
            browser.until(shows).await;
            let found = browser.run(VIOLATIONS).await;
            assert_eq!(found, serde_json::json!([]), "{scheme}, {key}: {found:#}");
            browser.run(back).await;
        }
        browser.types("p").await;
    }
}

/// The keys that are not in front of their labels, on the same line.
const PARTED: &str = "return [...document.querySelectorAll('.legend .key')].filter(key => {
    const label = document.createRange();
    label.selectNode(key.nextSibling);
    const [first, mark] = [[...label.getClientRects()].find(it => it.width > 0), key.getBoundingClientRect()];
    return first.left < mark.right || first.top > mark.bottom || first.bottom < mark.top;
}).map(key => key.className)";

/// The parts that have the colour of the background, and so are invisible.
const UNSEEN: &str = "const ground = getComputedStyle(document.body).backgroundColor;
    const drawn = {
        backgroundColor: ['.light', '.key:not(.in, .out)', '.bar .in-flight', '.way i'],
        borderTopColor: ['.key.in', '.key.out'],
        color: ['button[type=submit]', '#replay-all', '.waiting b', '.flying b'],
        outlineColor: ['.bar'],
        fill: ['svg .area', 'svg .there', 'svg .away'],
        stroke: ['svg .come', 'svg .go'],
    };
    return Object.entries(drawn).flatMap(([property, selectors]) => selectors.filter(selector =>
        getComputedStyle(document.querySelector(selector))[property] === ground))";

#[tokio::test]
async fn keys_keep_their_labels_and_forced_colours_show_all() {
    let deployment = Deployment::start().await;
    let gateway = GatewayProcess::start(&deployment).await;
    let browser = Browser::start().await;
    browser.open(&gateway.url()).await;
    browser.says("#queue-ACKNOWLEDGMENTS", "waiting").await;
    for width in [320, 360, 400, 600, 768, 1366] {
        browser.resize(width, 800).await;
        assert_eq!(browser.run(PARTED).await, serde_json::json!([]), "at {width} pixels");
    }
    for scheme in ["light", "dark"] {
        let forced = [("forced-colors", "active"), ("prefers-color-scheme", scheme)];
        browser.prefer(&forced).await;
        assert_eq!(browser.run(UNSEEN).await, serde_json::json!([]), "{scheme}");
    }
    // A pressed button differs by more than its colours.
    browser.types("p").await;
    let outline = "getComputedStyle(document.querySelector('[aria-pressed=true]')).outlineStyle";
    browser.until(&format!("{outline} === 'solid'")).await;
}

#[tokio::test]
async fn page_is_light_or_dark_as_preferred() {
    let deployment = Deployment::start().await;
    let generators = ["generator-1", "generator-2"].map(|name| [("INSTANCE", name)]);
    let one = deployment.run(Service::Generator, "one", &generators[0]).await;
    let two = deployment.run(Service::Generator, "two", &generators[1]).await;
    let rate = [("INSTANCE", "requestor-1"), ("REQUEST_RATE", "40")];
    let _requestor = deployment.run(Service::Requestor, "requestor", &rate).await;
    for process in [&one, &two] {
        ready(process).await;
    }
    let gateway = GatewayProcess::start(&deployment).await;
    let browser = Browser::start().await;
    browser.open(&gateway.url()).await;
    // The screenshots for the documents need some events.
    let directory = std::env::var_os("PAGE_SCREENSHOTS");
    if directory.is_some() {
        for depth in [600, 400, 250] {
            deployment.facts_reach(RECEIVED, deployment.facts(RECEIVED).await + 1000).await;
            two.pause().unwrap();
            one.pause().unwrap();
            eventually("the queue fills", async || match deployment.depth(REQUESTS).await {
                deep if deep > depth => Ok(()),
                other => Err(other),
            })
            .await;
            if depth > 250 {
                one.resume().unwrap();
                two.resume().unwrap();
            }
        }
    }
    browser.says("#requestor .replica", "requestor-1").await;
    let ground = "return getComputedStyle(document.body).backgroundColor";
    let mut grounds = Vec::new();
    for scheme in ["light", "dark"] {
        browser.prefers("prefers-color-scheme", scheme).await;
        grounds.push(browser.run(ground).await);
        if let Some(directory) = &directory {
            browser.resize(1280, 800).await;
            let file = format!("../{}/page-{scheme}.png", directory.to_string_lossy());
            let tall = browser.run("return document.documentElement.scrollHeight").await;
            browser.resize(1280, u32::try_from(tall.as_u64().unwrap()).unwrap()).await;
            let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
            browser.photograph(&file).await;
        }
    }
    assert_ne!(grounds[0], grounds[1]);
    assert_eq!(browser.complaints().await, [""; 0]);
}
