// The last events in words, for screen readers and for people who open the page later: the important changes, not
// every number.

import { byId, el, exact, moment, say } from "./dom.js";
import { QUEUES as FLOW } from "./flow.js";

const QUEUES = [...Object.keys(FLOW), "SCHEDULES"];
const SERVICES = ["requestor", "generator"];

/** The number of messages from which a growing queue is filling, and the number below which it is drained. */
const FILLING = 50;
const DRAINED = 10;

/** The number of events that are kept. */
const KEPT = 12;

export class EventLog {
  constructor() {
    this.restart([]);
  }

  restart(points) {
    this.last = null;
    this.filling = QUEUES.map(() => false);
    this.lowest = QUEUES.map(() => 0);
    this.paused = QUEUES.map(() => false);
    this.full = QUEUES.map(() => false);
    this.items = [];
    for (const point of points) this.note(point);
    this.show();
  }

  /** Records a point, and has a screen reader read out its events. */
  add(point) {
    if (this.last && point.n <= this.last.n) return;
    const told = this.note(point);
    if (!told.length) return;
    this.show();
    say(byId("live"), told.map(({ text }) => text).join(". "));
  }

  note(point) {
    const told = [];
    const tell = (kind, text) => told.push({ at: point.at, kind, text });
    const silent = point.queues === null;
    const queues = silent ? [] : [...point.queues, point.schedules];
    const before = this.last;
    if (before && silent !== before.silent) tell(silent ? "bad" : "good", silent ? "no data from the broker" : "data from the broker again");
    const there = before ? { ...before.there } : {};
    if (!silent) {
      SERVICES.forEach((service) => {
        const is = point[`${service}s`];
        const was = there[service];
        // A service that was never started is not away, and does not come back.
        if (was > 0 && is === 0) tell("bad", `${service} away`);
        else if (was === 0 && is > 0) tell("good", `${service} back`);
        if (was !== undefined || is > 0) there[service] = is;
      });
      QUEUES.forEach((name, index) => {
        const [waiting, flying, , , paused, full] = queues[index];
        const depth = waiting + flying;
        if (this.filling[index] && depth < DRAINED) {
          this.filling[index] = false;
          tell("good", `queue ${name} drained`);
        } else if (!this.filling[index] && depth >= FILLING && depth > this.lowest[index] + FILLING / 2 && depth > (before?.depths?.[index] ?? depth)) {
          this.filling[index] = true;
          tell("bad", `queue ${name} filling, ${exact(depth)} in it`);
        }
        if (paused !== this.paused[index]) {
          if (before) tell(paused ? "bad" : "good", `queue ${name} ${paused ? "paused" : "resumed"}`);
          this.paused[index] = paused;
        }
        if (full !== this.full[index]) {
          if (before) tell(full ? "bad" : "good", `queue ${name} ${full ? "full: its publishers wait" : "has room again"}`);
          this.full[index] = full;
        }
        this.lowest[index] = depth < this.lowest[index] ? depth : this.lowest[index] + (depth - this.lowest[index]) / 30;
      });
    }
    const depths = silent ? before?.depths : queues.map(([waiting, flying]) => waiting + flying);
    this.last = { n: point.n, silent, there, depths };
    this.items = [...told.reverse(), ...this.items].slice(0, KEPT);
    return told;
  }

  show() {
    const items = this.items.map(({ at, kind, text }) => el("li", {}, el("time", { datetime: new Date(at).toISOString() }, moment(at)), el("span", { class: kind }, text)));
    byId("event-log").replaceChildren(...(items.length ? items : [el("li", { class: "empty" }, "No events.")]));
  }
}
