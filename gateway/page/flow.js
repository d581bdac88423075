// The picture of the flow: two services, three queues between them, and the moving messages.

import { ask, button, byId, count, counted, el, exact, hide, mark, moment, onPress, rate, say, span } from "./dom.js";

/** The queues between the two services. */
export const QUEUES = {
  REQUESTS: { from: "requestor", to: "generator", what: "1 · asked for: requestor → generator" },
  RESPONSES: { from: "generator", to: "requestor", what: "2 · made: generator → requestor" },
  ACKNOWLEDGMENTS: { from: "requestor", to: "generator", what: "3 · stored: requestor → generator" },
};

/** The work of each service on the deliveries of a queue. */
const DOES = { requestor: { RESPONSES: "stores" }, generator: { REQUESTS: "makes", ACKNOWLEDGMENTS: "marks" } };

/** The fewest messages that fill a bar, so that a few look like few. */
const SMALLEST = 100;

const lanes = new Map();
const boxes = new Map();

function way(by) {
  const dots = [1, 2, 3, 4].map(() => el("i"));
  return el("div", { class: `way ${by}`, "data-speed": 0, "aria-hidden": "true" }, ...dots);
}

function lane(name) {
  const { from, to, what } = QUEUES[name];
  const parts = {
    waiting: el("b", {}, "0"),
    flying: el("b", {}, "0"),
    lanes: el("p", { class: "priorities" }),
    oldest: el("span", { class: "oldest" }),
    rates: el("span", { class: "rates" }),
    full: el("span", { class: "full" }),
    inFlight: el("span", { class: "in-flight" }),
    waits: el("span", { class: "waits" }),
    come: way(from),
    go: way(to),
    pause: button("Pause", (pressed) => pause(name, pressed), { class: "pause" }),
  };
  parts.pause.hidden = !allowed;
  const queue = el("div", { class: "queue" },
    el("div", { class: "top" }, el("h3", {}, name), el("span", { class: "what" }, what), parts.pause),
    el("div", { class: "counts" },
      el("span", { class: "waiting" }, parts.waiting, " waiting"),
      el("span", { class: "flying" }, parts.flying, " in flight"),
      parts.full, parts.oldest, parts.rates),
    el("div", { class: "bar", "aria-hidden": "true" }, parts.inFlight, parts.waits),
    parts.lanes);
  // The way of a response is from right to left.
  const back = from === "generator";
  const ways = back ? [parts.go, queue, parts.come] : [parts.come, queue, parts.go];
  const item = el("li", { class: back ? "lane back" : "lane", id: `queue-${name}` }, ...ways);
  byId("lanes").append(item);
  return parts;
}

/** For how long the button pauses a queue. */
const PAUSED = "10m";

/** Whether this deployment lets the page pause a queue. */
let allowed = false;

export function allowPause(can) {
  allowed = can;
  for (const { pause } of lanes.values()) pause.hidden = !can;
}

onPress(byId("schedules-pause"), (pressed) => pause("SCHEDULES", pressed));

function showPause(button, until) {
  mark(button, "paused", Boolean(until));
  say(button, until ? "Resume" : "Pause");
}

async function pause(name, button) {
  say(byId("pause-note"), "");
  const paused = button.dataset.paused === "true";
  try {
    if (paused) await ask(`queues/${name}/resume`, {});
    else await ask(`queues/${name}/pause`, { for: PAUSED });
  } catch (error) {
    say(byId("pause-note"), `${name} cannot be ${paused ? "resumed" : "paused"}: ${error.message}.`);
  }
}

/** The speed of the moving dots, from 0 to 4: never faster than eyes can follow. */
const speed = (perSecond) => (perSecond <= 0 ? 0 : perSecond < 3 ? 1 : perSecond < 50 ? 2 : perSecond < 1000 ? 3 : 4);

/** The next larger number that is 1, 2 or 5 with zeros behind it. */
export function scaleFor(most) {
  let scale = SMALLEST;
  for (let step = 0; scale < most; step += 1) scale *= step % 3 === 1 ? 2.5 : 2;
  return scale;
}

/** The scale of all bars, so that they can be compared; and the last number of messages in each queue. */
let scale = SMALLEST;
let before = [];

/** Chooses the scale. It shrinks only while no queue grows: the bar of a growing queue would jump. */
function rescale(depths) {
  const needed = scaleFor(Math.max(0, ...depths));
  const grows = depths.some((depth, index) => depth > (before[index] ?? 0));
  if (needed > scale || !grows) scale = needed;
  before = depths;
}

function showBrokers(brokers) {
  say(byId("brokers"), brokers.length ? `Brokers: ${brokers.map(({ name, state }) => `${name} ${state}`).join(", ")}` : "");
  byId("brokers").classList.toggle("full", brokers.some(({ state }) => state === "offline"));
}

/** Shows the requests that are due later, which wait before the first queue. */
function showSchedules({ name, scheduled, waiting, in_flight: flying, full, paused_until: until }) {
  const due = waiting + flying;
  const parts = [scheduled && `${count(scheduled)} not due yet`, due && `${count(due)} due`, full && "full", until && `paused until ${moment(until)}`];
  const there = parts.filter(Boolean).join(", ");
  say(byId("scheduled"), there && `${name}: ${there}`);
  byId("scheduled").classList.toggle("full", full || Boolean(until));
  showPause(byId("schedules-pause"), until);
  hide(byId("schedules-pause"), !allowed || !there, byId("flow"));
}

/** Shows the flow in one line, for small screens without room for both a step and the picture. */
function showStrip({ queues, requestors, generators }) {
  const depths = queues.filter(({ name }) => name in QUEUES).map(({ name, waiting, in_flight: flying }) => `${name} ${count(waiting + flying)}`);
  say(byId("lesson-flow"), [counted(requestors, "requestor"), ...depths, counted(generators, "generator")].join(" · "));
}

/** Shows the flow as it was at a time, in milliseconds by the clock of the gateway. */
export function showFlow(flow, at) {
  rescale(flow.queues.map((queue) => queue.waiting + queue.in_flight));
  say(byId("scale"), `a full bar: ${exact(scale)} messages`);
  for (const queue of flow.queues) {
    if (!(queue.name in QUEUES)) continue;
    if (!lanes.has(queue.name)) lanes.set(queue.name, lane(queue.name));
    const parts = lanes.get(queue.name);
    say(parts.waiting, count(queue.waiting));
    say(parts.flying, count(queue.in_flight));
    say(parts.rates, `${rate(queue.arrival_rate)}/s in, ${rate(queue.departure_rate)}/s out`);
    const paused = queue.paused_until && `paused until ${moment(queue.paused_until)}`;
    say(parts.full, [paused, queue.full && "full: its publishers wait"].filter(Boolean).join(", "));
    showPause(parts.pause, queue.paused_until);
    const age = queue.oldest_at && Math.max(0, at - Date.parse(queue.oldest_at));
    say(parts.oldest, queue.oldest_at ? `oldest message ${span(age)}` : "");
    const priorities = queue.lanes.map(({ priority, waiting, in_flight }) => `${priority} ${count(waiting + in_flight)}`);
    say(parts.lanes, priorities.join(" · "));
    // Even one message is visible.
    const part = (messages) => `${messages ? Math.max(0.7, (100 * messages) / scale) : 0}%`;
    parts.inFlight.style.width = part(queue.in_flight);
    parts.waits.style.width = part(queue.waiting);
    mark(parts.come, "speed", speed(queue.arrival_rate));
    mark(parts.go, "speed", speed(queue.departure_rate));
  }
  showStrip(flow);
  showSchedules(flow.schedules);
  showBrokers(flow.brokers);
  showService("requestor", flow.requestors, flow.more_requestors, flow.replicas);
  showService("generator", flow.generators, flow.more_generators, flow.replicas);
}

function showService(service, working, more, replicas) {
  const section = byId(service);
  section.classList.toggle("gone", working === 0);
  section.querySelector(".away").hidden = working > 0;
  say(section.querySelector(".others"), more > 0 ? `and ${exact(more)} more` : "");
  const list = section.querySelector(".replicas");
  const there = new Set();
  for (const replica of replicas) {
    if (replica.service !== service) continue;
    const key = `${service} ${replica.id}`;
    there.add(key);
    let box = boxes.get(key);
    if (!box) {
      const name = el("p", { class: "name" });
      const rates = el("span", { class: "rate" });
      const waits = el("p", { class: "full" });
      const more = el("p", { class: "more" });
      const item = el("li", { class: "replica" }, name, el("p", {}, rates), waits, more);
      box = { item, name, rates, waits, more };
      boxes.set(key, box);
      list.append(item);
    }
    say(box.name, replica.instance);
    mark(box.item, "state", replica.state);
    const works = replica.state === "ready";
    const settles = Object.entries(DOES[service]).map(([queue, does]) => `${does} ${rate(replica.settle_rates[queue] ?? 0)}/s`);
    const does = [replica.request_rate > 0 && `asks ${rate(replica.request_rate)}/s`, ...settles].filter(Boolean);
    say(box.rates, works ? does.join(", ") : replica.state);
    // The full queues are the reason why it does nothing.
    say(box.waits, works && replica.full_streams.length ? `waits: ${replica.full_streams.join(" and ")} full` : "");
    const holds = Object.entries(replica.in_flight_by_queue).map(([queue, messages]) => `${queue} ${count(messages)}`);
    say(box.more, `version ${replica.version}${works ? `, in flight: ${holds.join(", ") || "none"}` : ""}`);
  }
  for (const [key, box] of boxes) {
    if (key.startsWith(`${service} `) && !there.has(key)) {
      box.item.remove();
      boxes.delete(key);
    }
  }
}
