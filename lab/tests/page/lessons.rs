//! The lessons beside the flow, and the buttons of the lab.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::json;
use testkit::eventually::eventually;
use testkit::http;
use testkit::process::{Process, bound_to_this, logged};
use testkit::target_directory::directory;
use tokio::time::timeout;

use crate::accessibility::{NO_AXE, VIOLATIONS};
use crate::browser::Browser;
use crate::deployment::{Deployment, Service};
use crate::gateway::GatewayProcess;

/// The first step of the lesson.
const FIRST: &str = "#lesson .steps > li:first-child";

#[tokio::test]
async fn step_is_ticked_once_its_check_holds_and_stays_so() {
    let deployment = Deployment::start().await;
    let generator = deployment.run(Service::Generator, "generator", &[]).await;
    let rate = [("REQUEST_RATE", "20")];
    let _requestor = deployment.run(Service::Requestor, "requestor", &rate).await;
    let gateway = GatewayProcess::start(&deployment).await;
    let browser = Browser::start().await;
    browser.open(&gateway.url()).await;
    browser.says("#status", "live").await;
    browser.types("l").await;
    browser.press("#lesson-body li:nth-child(2) a").await;
    browser.says(FIRST, "now: generators 1").await;
    browser.write("#lesson textarea", "Nobody notices.").await;
    drop(generator);
    browser.until(&format!("document.querySelector('{FIRST}').dataset.state === 'done'")).await;
    browser.says(&format!("{FIRST} .tick"), "generators 0").await;
    browser.says("#lesson .steps > li:nth-child(2)", "now: ").await;
    browser.client.refresh().await.unwrap();
    browser.says(&format!("{FIRST} .tick"), "generators 0").await;
    browser.until("document.querySelector('#lesson textarea').value === 'Nobody notices.'").await;
    // Without a lab, the page has no button that runs commands.
    let run = "[...document.querySelectorAll('#lesson button')].find(it => it.textContent === 'Run it' && it.checkVisibility())";
    browser.until(&format!("!{run}")).await;
    browser.until("document.querySelector('#lab').hidden").await;
    browser.press(&format!("{FIRST} .tick button")).await;
    browser.until(&format!("document.querySelector('{FIRST}').dataset.state === 'current'")).await;
    // The pane opens and closes with its address.
    browser.client.back().await.unwrap();
    browser.says("#lesson-title", "Lessons").await;
    browser.client.back().await.unwrap();
    browser.until("document.querySelector('#lesson').hidden").await;
    browser.types("l").await;
    browser.says("#lesson-body li:nth-child(2)", "0 of 4 steps").await;
    assert_eq!(browser.complaints().await, [""; 0]);
}

/// Chooses where the learner is.
fn choose(place: &str) -> String {
    format!(
        "const place = document.querySelector('#lesson-place'); place.value = '{place}'; \
         place.dispatchEvent(new Event('change', {{ bubbles: true }}));"
    )
}

#[tokio::test]
async fn lesson_fits_the_place_of_its_learner() {
    let deployment = Deployment::start().await;
    let gateway = GatewayProcess::start(&deployment).await;
    let browser = Browser::start().await;
    browser.open(&format!("{}#/lessons/5", gateway.url())).await;
    let second = "#lesson .steps > li:nth-child(2)";
    // Only the lab has a command for the first step.
    for (place, current) in [("lab", FIRST), ("kubectl", second)] {
        browser.until("document.querySelector('#lesson .steps')").await;
        browser.run(&choose(place)).await;
        let is_current =
            format!("document.querySelector('{current}')?.dataset.state === 'current'");
        browser.until(&is_current).await;
        // The choice survives a reload.
        browser.client.refresh().await.unwrap();
        browser.until(&is_current).await;
    }
    browser.says(second, "kubectl").await;
    browser.says(second, "Hint").await;
    browser.press_words(second, "Hint").await;
    browser.says(second, "Hint: ").await;
    // The lessons show what the commands of the lab print, and no others.
    browser.open(&format!("{}#/lessons/1", gateway.url())).await;
    browser.until("document.querySelectorAll('#lesson .steps > li').length === 4").await;
    let printed = "[...document.querySelectorAll('#lesson .steps details')].some(it => it.textContent.includes('Nothing lost, nothing doubled.'))";
    browser.until(&format!("!{printed}")).await;
    browser.run(&choose("lab")).await;
    browser.until(printed).await;
    assert_eq!(browser.complaints().await, [""; 0]);
}

/// Makes the next command of the lab fail.
const COMMAND_FAILS_ONCE: &str = "
    const fetched = window.fetch;
    window.fetch = async (url, ...more) => {
      const answer = await fetched(url, ...more);
      if (!String(url).endsWith('/run')) return answer;
      window.fetch = fetched;
      return Response.json({ ...(await answer.json()), status: 1 });
    };";

/// Whether each picture of the lesson is large enough, once its parts are open.
const PICTURES: &str = "
    for (const part of document.querySelectorAll('#lesson details')) part.open = true;
    const pictures = [...document.querySelectorAll('#lesson .text img')];
    return pictures.map((picture) => picture.getBoundingClientRect().height > 100);";

#[tokio::test]
async fn page_of_the_lab_controls_it_and_has_no_violation() {
    let files = tempfile::tempdir().unwrap();
    let mut command = bound_to_this(env!("CARGO_BIN_EXE_lab"));
    command.args(["up", "--for", "1h", "--rate", "20"]).env_remove("RUST_BACKTRACE");
    let mut lab = Process::spawn(command, files.path().join("log")).unwrap();
    logged(&lab, "REQUESTS 0 waiting").await;
    let said = lab.log_text();
    let page = said.split_once("The page is at ").unwrap().1.split_once('\n').unwrap().0;
    let browser = Browser::start().await;
    browser.open(&format!("{page}#/lessons/1")).await;
    browser.says("#lab-services", "generator-2").await;
    browser.says(FIRST, "now: generators 2").await;
    let run_it = format!("{FIRST} .choice button:nth-child(2)");
    browser.run(COMMAND_FAILS_ONCE).await;
    browser.press(&run_it).await;
    browser.says(FIRST, "It failed, with status 1").await;
    // Long after the check would hold, because the command has failed.
    let waiting = format!(
        "document.querySelector('{FIRST} .now').textContent.match(/REQUESTS (\\d+)/)?.[1] > 160"
    );
    browser.until(&waiting).await;
    browser.until(&format!("document.querySelector('{FIRST}').dataset.state === 'current'")).await;
    browser.press(&run_it).await;
    browser.until(&format!("document.querySelector('{FIRST}').dataset.state === 'done'")).await;
    browser.press("button[aria-label='Start generators']").await;
    browser.says("#generator", "generator-2").await;
    browser.press("button[aria-label='Kill generator-1']").await;
    browser.says("#lab-services", "generator-1, ended").await;
    browser.press("button[aria-label='Start generators']").await;
    browser.says("#lab-services", "generator-1, pid").await;
    browser.press("button[aria-label='More generators']").await;
    browser.says("#lab-services", "generator-3, pid").await;
    for button in [
        "Fewer generators",
        "Pause requestors",
        "Resume requestors",
        "Stop requestors",
        "Start requestors",
        "Deploy generators",
    ] {
        browser.press(&format!("button[aria-label='{button}']")).await;
        browser.says("#lab-note", &format!("{button}: done.")).await;
    }
    browser.write("#lab-rate", "30").await;
    browser.press("#lab-settings button").await;
    browser.says("#lab-note", "Set rate 30: done.").await;
    let at = page.trim_start_matches("http://").trim_end_matches('/').parse().unwrap();
    // A step that begins before the page has noticed the deployed generators would take them for its own.
    let from = (Timestamp::now() + Duration::from_secs(2)).as_millisecond();
    eventually("the page has noticed all that was done", async || {
        let history = http::ask(at, "GET", "/api/history", &[], "").await.unwrap().json();
        let newest = history.as_array().and_then(|all| all.last()?["at"].as_i64());
        if newest >= Some(from) { Ok(()) } else { Err(newest) }
    })
    .await;
    // To set the scene replaces the generators, and does not do the step. It resumes a queue, and removes a schedule.
    browser.open(&format!("{page}#/lessons/8")).await;
    browser.says(FIRST, "now: generators 2").await;
    browser.press("#queue-RESPONSES .pause").await;
    browser.says("#queue-RESPONSES .full", "paused until").await;
    let json = [("Content-Type", "application/json")];
    let set = http::ask(at, "PUT", "/schedules/tick", &json, r#"{"every":"2s","count":1}"#);
    assert_eq!(set.await.unwrap().status, 201);
    browser.press_words("#lesson", "Set the scene").await;
    browser.says("#lesson", "The scene is set.").await;
    browser.until("!document.querySelector('#queue-RESPONSES .full').textContent").await;
    let schedules = http::ask(at, "GET", "/schedules", &[], "").await.unwrap();
    assert!(!schedules.body.contains("tick"), "{}", schedules.body);
    browser.says(FIRST, "new generators 0").await;
    browser.until(&format!("document.querySelector('{FIRST}').dataset.state === 'current'")).await;
    browser.press(&run_it).await;
    browser.says(&format!("{FIRST} .tick"), "new generators 2").await;
    // A step without a check is done once its command has run.
    browser.open(&format!("{page}#/lessons/6")).await;
    let second = "#lesson .steps > li:nth-child(2)";
    browser.press(&format!("{second} .choice button:nth-child(2)")).await;
    browser.says(&format!("{second} .tick"), "the command has run").await;
    browser.open(&format!("{page}#/lessons/1")).await;
    browser.write("#lab-rate", "fast").await;
    browser.press("#lab-settings button").await;
    browser.says("#lab-note", "requests a second").await;
    let refused = browser.complaints().await;
    assert!(refused.len() == 1 && refused[0].contains("409"), "{refused:?}");
    let axe = directory().join("axe/axe_playwright_python/axe.min.js");
    browser.run(&std::fs::read_to_string(axe).expect(NO_AXE)).await;
    for scheme in ["light", "dark"] {
        // Without motion, because axe would judge parts that are just appearing.
        let still = ("prefers-reduced-motion", "reduce");
        browser.prefer(&[("prefers-color-scheme", scheme), still]).await;
        for width in [320, 1366] {
            browser.resize(width, 800).await;
            let found = browser.run(VIOLATIONS).await;
            assert_eq!(found, json!([]), "{scheme}, {width}: {found:#}");
            let wide = "return document.documentElement.scrollWidth - document.documentElement.clientWidth";
            assert_eq!(browser.run(wide).await, 0, "at {width} pixels one has to scroll sideways");
            assert_eq!(browser.run(PICTURES).await, json!([true]), "at {width} pixels");
        }
    }
    assert_eq!(browser.complaints().await, [""; 0]);
    lab.terminate().unwrap();
    let ended = timeout(Duration::from_mins(1), lab.wait()).await.expect("it ends");
    assert!(ended.unwrap().success(), "{}", lab.log_text());
}
