// The time axis: how deep each queue was, what came and went, and when a service was away.

import { byId, clock, count, draw, el, exact, rate, say } from "./dom.js";
import { QUEUES as FLOW } from "./flow.js";

const QUEUES = Object.keys(FLOW);
const SERVICES = ["requestor", "generator"];
const SPAN = 300_000;
const WIDTH = 600;
const HEIGHT = 100;

/** How long a point stands for, if no other comes: there is one each second. */
const STANDS = 2_600;

export class Axis {
  constructor() {
    this.points = [];
    /** The times of the points in the table. */
    this.tabulated = null;
    const charts = byId("charts");
    this.depths = QUEUES.map((name) => {
      const most = el("span", { class: "most" });
      const svg = drawing(`How deep ${name} was`);
      const parts = { most, area: draw("path", { class: "area" }), come: draw("path", { class: "come" }), go: draw("path", { class: "go" }) };
      svg.append(...grid(), parts.area, parts.come, parts.go);
      charts.append(el("div", { class: "chart depths" }, el("p", { class: "label" }, name, most), svg));
      return parts;
    });
    this.presence = SERVICES.map((service) => {
      const parts = { there: draw("path", { class: "there" }), away: draw("path", { class: "away" }), unknown: draw("path", { class: "unknown" }) };
      const svg = drawing(`When a ${service} was there`);
      svg.append(parts.unknown, parts.there, parts.away);
      charts.append(el("div", { class: `chart presence ${service}` }, el("p", { class: "label" }, `${service}s there`), svg));
      return parts;
    });
    const times = ["5 min ago", "4", "3", "2", "1", "now"].map((word) => el("span", {}, word));
    charts.append(el("div", { class: "chart", "aria-hidden": "true" }, el("span"), el("div", { class: "times" }, ...times)));
    byId("axis-table").addEventListener("toggle", () => this.tabulate());
  }

  restart(points) {
    this.points = points;
    this.show();
  }

  /** Adds a point, and gives whether it is the one after the last. */
  add(point) {
    const last = this.points.at(-1);
    if (last && point.n === last.n) return true;
    const next = !last || point.n === last.n + 1;
    this.points.push(point);
    this.show();
    return next;
  }

  show() {
    const now = this.points.at(-1)?.at ?? Date.now();
    this.points = this.points.filter((point) => point.at > now - SPAN);
    const x = (at) => (((at - now + SPAN) / SPAN) * WIDTH).toFixed(1);
    const seen = this.points.filter((point) => point.queues);
    // One scale for all queues, so that they can be compared.
    const deepest = Math.max(10, ...seen.flatMap((point) => point.queues.map(([waiting, flying]) => waiting + flying)));
    const fastest = Math.max(5, ...seen.flatMap((point) => point.queues.flatMap(([, , come, go]) => [come, go])));
    const y = (value, most) => (HEIGHT - 3 - (value / most) * (HEIGHT - 8)).toFixed(1);
    // By the square root, so that after a spike the usual rates are no flat line.
    const ofRate = (value) => y(Math.sqrt(value), Math.sqrt(fastest));
    const runs = this.runs();
    this.depths.forEach((parts, index) => {
      const of = (pick) => runs.map((run) => run.map((point) => [x(point.at), pick(point.queues[index])]));
      parts.area.setAttribute("d", of(([waiting, flying]) => y(waiting + flying, deepest)).map((run) => `M${run[0][0]},${HEIGHT}L${run.map((at) => at.join()).join("L")}L${run.at(-1)[0]},${HEIGHT}Z`).join(""));
      const line = (pick) => of(pick).map((run) => `M${run.map((at) => at.join()).join("L")}`).join("");
      parts.come.setAttribute("d", line(([, , come]) => ofRate(come)));
      parts.go.setAttribute("d", line(([, , , go]) => ofRate(go)));
      const most = Math.max(0, ...seen.map(({ queues }) => queues[index][0] + queues[index][1]));
      const quickest = Math.max(0, ...seen.map(({ queues }) => Math.max(queues[index][2], queues[index][3])));
      say(parts.most, `up to ${count(most)}, ${rate(quickest)}/s`);
    });
    this.presence.forEach((parts, index) => {
      const service = `${SERVICES[index]}s`;
      const blocks = (test) => this.points.map((point, place) => [point, this.points[place + 1]]).filter(([point]) => test(point)).map(([point, next]) => {
        const until = Math.min(next?.at ?? point.at + 1000, point.at + STANDS);
        return `M${x(point.at)},0H${x(Math.min(until, now))}V${HEIGHT}H${x(point.at)}Z`;
      }).join("");
      parts.unknown.setAttribute("d", blocks((point) => point.queues === null));
      parts.there.setAttribute("d", blocks((point) => point.queues !== null && point[service] > 0));
      parts.away.setAttribute("d", blocks((point) => point.queues !== null && point[service] === 0));
    });
    this.tabulate();
  }

  /** The points with numbers, in runs without a gap. */
  runs() {
    const runs = [];
    let last = null;
    for (const point of this.points) {
      if (point.queues) {
        if (!last || point.at - last.at > STANDS * 2) runs.push([]);
        runs.at(-1).push(point);
      }
      last = point.queues ? point : null;
    }
    return runs;
  }

  /** The same as a table, for screen readers and for exact numbers. */
  tabulate() {
    const table = byId("axis-table");
    if (!table.open) return;
    const points = this.points.filter((point) => point.n % 15 === 0).reverse();
    const times = points.map(({ at }) => at).join();
    // A screen reader loses its place in a table that is made anew.
    if (times === this.tabulated) return;
    this.tabulated = times;
    const heads = ["time", ...QUEUES.flatMap((name) => [name, "in/s", "out/s"]), "requestors", "generators"];
    table.querySelector("thead").replaceChildren(el("tr", {}, ...heads.map((head) => el("th", { scope: "col" }, head))));
    const rows = points.map((point) => {
      const queues = point.queues?.flatMap(([waiting, flying, come, go]) => [exact(waiting + flying), rate(come), rate(go)]);
      const cells = queues ? [...queues, point.requestors, point.generators] : Array(11).fill("?");
      return el("tr", {}, el("th", { scope: "row" }, clock(point.at)), ...cells.map((cell) => el("td", {}, String(cell))));
    });
    table.querySelector("tbody").replaceChildren(...rows);
  }
}

function drawing(label) {
  return draw("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-label": `${label}; the table below says the same` });
}

const grid = () => [1, 2, 3, 4].map((minute) => draw("path", { class: "grid", d: `M${(minute * WIDTH) / 5},0V${HEIGHT}` }));
