// Shows each snapshot that the gateway sends, and reconnects if the connection is lost or no snapshot arrives.

import { byId, say, mark } from "./dom.js";
import { allowPause, showFlow } from "./flow.js";
import { Axis } from "./axis.js";
import { setGateway, showAudit, showNumbers } from "./numbers.js";
import { showLast } from "./last_strings.js";
import { setLab } from "./lab.js";
import { showPlace } from "./lessons.js";
import "./history.js";
import "./keys.js";
import "./requests.js";
import { allowControl, countLetters } from "./dead_letters.js";
import { EventLog } from "./event_log.js";

const axis = new Axis();
const eventLog = new EventLog();
const heard = (event) => JSON.parse(event.data);

function trouble(why) {
  byId("main").classList.toggle("stale", Boolean(why));
  const banner = byId("banner");
  if (why) say(banner, why);
  banner.hidden = !why;
}

/** The milliseconds without a snapshot after which the page reconnects. One comes each second. */
const PATIENCE = 5_000;

const TROUBLE = {
  silent: ["the broker does not answer", (words) => `The broker does not answer: ${words}. The page shows its last known state.`],
  undeclared: ["nothing is declared", (words) => `The broker runs, but the queues are missing: ${words}. Run decoupled declare, or start a service, which declares them.`],
  refused: ["the broker refuses", (words) => `The broker runs, but refuses a request of this page: ${words}.`],
  denied: ["a permission is missing", (words) => `The broker runs, but denies the gateway a permission: ${words}. The user of the gateway needs the permissions of k8s/nats/nats.conf.`],
};

let events = null;
let watchdog;

function lost() {
  mark(byId("status"), "state", "silent");
  say(byId("status-text"), "no gateway");
  trouble("The gateway does not answer. This page tries again until it does.");
}

function disconnect() {
  clearTimeout(watchdog);
  events?.close();
  events = null;
}

/** Reconnects unless a snapshot comes in time: a connection may be dead without an error. */
function awake() {
  clearTimeout(watchdog);
  watchdog = setTimeout(() => {
    lost();
    disconnect();
    connect();
  }, PATIENCE);
}

/** The time of the last snapshot. */
let seenAt = null;

function connect() {
  const mine = new EventSource("api/events");
  events = mine;
  awake();
  mine.addEventListener("about", (event) => {
    const about = heard(event);
    say(byId("version"), `, by gateway ${about.version}`);
    setGateway(about.instance);
    allowControl(about.control);
    allowPause(about.control);
    if (setLab(about.lab ?? null)) showPlace();
  });
  mine.addEventListener("history", (event) => {
    const points = heard(event);
    axis.restart(points);
    eventLog.restart(points);
  });
  mine.addEventListener("audit", (event) => showAudit(heard(event)));
  mine.addEventListener("snapshot", (event) => {
    awake();
    const { at, flow, point, trouble: why } = heard(event);
    const [state, words] = why ? TROUBLE[why.kind] : ["live"];
    mark(byId("status"), "state", why ? "silent" : "live");
    say(byId("status-text"), state);
    trouble(why ? words(why.words) : "");
    // While the broker does not answer, the ages are those of the last snapshot.
    if (!why) seenAt = at;
    if (flow) {
      showFlow(flow, seenAt ?? at);
      showNumbers(flow);
      showLast(flow.last);
      countLetters(flow.totals.dead_letters);
    }
    if (axis.add(point)) return eventLog.add(point);
    // This tab has missed snapshots: it was slow, or asleep. A new connection begins with the last five minutes.
    disconnect();
    connect();
  });
  mine.addEventListener("error", lost);
}

// After some answers a browser does not reconnect, and the watchdog does. A hidden page needs no snapshots.
document.addEventListener("visibilitychange", () => {
  if (document.hidden) disconnect();
  else if (!events) connect();
});

if (!document.hidden) connect();
