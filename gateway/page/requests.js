// The list of requests: the newest first, a page at a time, of a state and a priority; and what is asked for again and
// again. It is read when it is asked for, and costs nothing otherwise.

import { ask, byId, clock, counted, el, say } from "./dom.js";
import { showHistory } from "./history.js";

const STATES = ["queued", "stored", "received", "cancelled", "doubled", "dead-lettered"];
const LABELS = ["state", "priority", "strings", "asked", "by"];
const PAGE = 25;

byId("requests-status").append(...STATES.map((state) => el("option", {}, state)));

let next = null;

function row({ id, status, priority, count, length, requested_at: at, requested_by: by }) {
  const button = el("button", { type: "button", class: "plain" }, id);
  button.addEventListener("click", () => showHistory(id));
  const texts = [status, priority, `${count} of ${length}`, `${new Date(at).toLocaleDateString("en-GB")} ${clock(at)}`, by];
  const cells = texts.map((text, place) => el("td", { "data-label": LABELS[place] }, text));
  return el("tr", { "data-by": by }, el("td", { "data-label": "request" }, button), ...cells);
}

async function read(cursor) {
  const [status, priority] = [byId("requests-status").value, byId("requests-priority").value];
  const query = new URLSearchParams({ limit: PAGE, ...(status && { status }), ...(priority && { priority }), ...(cursor && { cursor }) });
  try {
    const page = await ask(`requests?${query}`);
    if (!cursor) byId("requests-rows").replaceChildren();
    byId("requests-rows").append(...page.requests.map(row));
    next = page.next ?? null;
    filter();
  } catch (error) {
    say(byId("requests-note"), `They cannot be read: ${error.message}.`);
  }
}

/** Shows those that were asked by somebody, of those that were read. */
function filter() {
  const by = byId("requests-by").value.trim().toLowerCase();
  const rows = [...byId("requests-rows").children];
  for (const item of rows) item.hidden = !item.dataset.by.toLowerCase().includes(by);
  const shown = rows.filter((item) => !item.hidden).length;
  byId("requests-table").hidden = rows.length === 0;
  byId("requests-more").hidden = !next;
  say(byId("requests-note"), rows.length ? `${counted(shown, "request")}, the newest first.` : `There are none${next ? " among the newest" : ""}.`);
}

byId("requests-form").addEventListener("submit", (event) => {
  event.preventDefault();
  read(null);
});
byId("requests-by").addEventListener("input", filter);
byId("requests-more").addEventListener("click", () => read(next));

async function readSchedules() {
  const { schedules } = await ask("schedules").catch(() => ({ schedules: [] }));
  byId("schedules").hidden = schedules.length === 0;
  byId("schedules-list").replaceChildren(...schedules.map(({ name, every, cron, time_zone: zone, count, length }) =>
    el("li", {}, el("b", {}, name), ` ${every ? `each ${every}` : `at ${cron} ${zone ?? "UTC"}`}: ${count} of ${length} characters`)));
}

readSchedules();
setInterval(() => document.hidden || readSchedules(), 30_000);
