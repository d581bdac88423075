// The picture of the flow: two sides, three queues between them, and what moves.

import { byId, clock, count, el, exact, mark, rate, say } from "./dom.js";

const QUEUES = {
  REQUESTS: { from: "requestor", to: "generator", what: "1 · asked for: requestor → generator" },
  RESPONSES: { from: "generator", to: "requestor", what: "2 · made: generator → requestor" },
  ACKNOWLEDGMENTS: { from: "requestor", to: "generator", what: "3 · stored: requestor → generator" },
};

/** As many messages fill a bar at the least, so that a few look like few. */
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
    rates: el("span", { class: "rates" }),
    full: el("span", { class: "full" }),
    inFlight: el("span", { class: "in-flight" }),
    waits: el("span", { class: "waits" }),
    come: way(from),
    go: way(to),
  };
  const queue = el("div", { class: "queue" },
    el("div", { class: "top" }, el("h3", {}, name), el("span", { class: "what" }, what)),
    el("div", { class: "counts" },
      el("span", { class: "waiting" }, parts.waiting, " waiting"),
      el("span", { class: "flying" }, parts.flying, " in flight"),
      parts.full, parts.rates),
    el("div", { class: "bar", "aria-hidden": "true" }, parts.inFlight, parts.waits),
    parts.lanes);
  // The way of a response is from right to left.
  const back = from === "generator";
  const ways = back ? [parts.go, queue, parts.come] : [parts.come, queue, parts.go];
  const item = el("li", { class: back ? "lane back" : "lane", id: `queue-${name}` }, ...ways);
  byId("lanes").append(item);
  return parts;
}

/** How fast what moves is drawn: a little for a little, and never faster than eyes can follow. */
const speed = (perSecond) => (perSecond <= 0 ? 0 : perSecond < 3 ? 1 : perSecond < 50 ? 2 : perSecond < 1000 ? 3 : 4);

/** The next number of 1, 2 or 5 with zeros behind it. */
export function scaleFor(most) {
  let scale = SMALLEST;
  for (let step = 0; scale < most; step += 1) scale *= step % 3 === 1 ? 2.5 : 2;
  return scale;
}

/** The scale of all bars, so that they can be compared; and how deep the deepest queue was. */
let scale = SMALLEST;
let deepest = 0;

/** A scale that shrinks while a queue grows would have its bar jump: it shrinks only while all of them do. */
function rescale(depth) {
  const needed = scaleFor(depth);
  if (needed > scale || depth < deepest) scale = needed;
  deepest = depth;
}

export function showFlow(flow) {
  rescale(Math.max(0, ...flow.queues.map((queue) => queue.waiting + queue.in_flight)));
  say(byId("scale"), `a full bar: ${exact(scale)} messages`);
  for (const queue of flow.queues) {
    if (!(queue.name in QUEUES)) continue;
    if (!lanes.has(queue.name)) lanes.set(queue.name, lane(queue.name));
    const parts = lanes.get(queue.name);
    say(parts.waiting, count(queue.waiting));
    say(parts.flying, count(queue.in_flight));
    say(parts.rates, `${rate(queue.come)}/s in, ${rate(queue.go)}/s out`);
    const full = queue.limit !== null && queue.waiting + queue.in_flight >= queue.limit;
    const paused = queue.paused_until && `paused until ${clock(queue.paused_until)}`;
    say(parts.full, [paused, full && "full: its publishers wait"].filter(Boolean).join(", "));
    const priorities = queue.lanes.map(({ priority, waiting, in_flight }) => `${priority} ${count(waiting + in_flight)}`);
    say(parts.lanes, priorities.join(" · "));
    // What is there shows, however little it is.
    const part = (messages) => `${messages ? Math.max(0.7, (100 * messages) / scale) : 0}%`;
    parts.inFlight.style.width = part(queue.in_flight);
    parts.waits.style.width = part(queue.waiting);
    mark(parts.come, "speed", speed(queue.come));
    mark(parts.go, "speed", speed(queue.go));
  }
  showSide("requestor", flow.requestors, flow.more_requestors, flow.replicas);
  showSide("generator", flow.generators, flow.more_generators, flow.replicas);
}

function showSide(side, working, more, replicas) {
  const section = byId(side);
  section.classList.toggle("gone", working === 0);
  section.querySelector(".away").hidden = working > 0;
  say(section.querySelector(".others"), more > 0 ? `and ${exact(more)} more` : "");
  const list = section.querySelector(".replicas");
  const there = new Set();
  for (const replica of replicas) {
    if (replica.side !== side) continue;
    const key = `${side} ${replica.id}`;
    there.add(key);
    let box = boxes.get(key);
    if (!box) {
      const name = el("p", { class: "name" });
      const rates = el("span", { class: "rate" });
      const more = el("p", { class: "more" });
      const item = el("li", { class: "replica" }, name, el("p", {}, rates), more);
      box = { item, name, rates, more };
      boxes.set(key, box);
      list.append(item);
    }
    say(box.name, replica.instance);
    mark(box.item, "state", replica.state);
    const works = replica.state === "ready";
    say(box.rates, works ? `${rate(replica.rate)}/s settled` : replica.state);
    say(box.more, `version ${replica.version}${works ? `, ${count(replica.in_flight)} in flight` : ""}`);
  }
  for (const [key, box] of boxes) {
    if (key.startsWith(`${side} `) && !there.has(key)) {
      box.item.remove();
      boxes.delete(key);
    }
  }
}
