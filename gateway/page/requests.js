// The list of requests: the newest first, a page at a time, filtered by state, priority and the instance that asked;
// and the schedules. The list is read only on demand, so that it costs nothing otherwise.

import { follow, goToList } from "./address.js";
import { ask, byId, clock, counted, day, el, say } from "./dom.js";
import { showHistory } from "./history.js";

const STATES = ["queued", "stored", "received", "cancelled", "doubled", "dead-lettered", "scheduled"];
const LABELS = ["state", "priority", "strings", "asked", "by"];
const PAGE = 25;

byId("requests-status").append(...STATES.map((state) => el("option", {}, state)));

/** The fields of the filter, by their names in the API. */
const FIELDS = { status: byId("requests-status"), priority: byId("requests-priority"), requested_by: byId("requests-by") };

/** The filter of the shown list, and the cursor of its next page. */
let filter = {};
let next = null;

function row({ id, status, priority, count, length, requested_at: at, requested_by: by }) {
  const button = el("button", { type: "button", class: "plain" }, id);
  button.addEventListener("click", () => showHistory(id));
  const texts = [status, priority, `${count} of ${length}`, `${status === "scheduled" ? "due " : ""}${day(at)} ${clock(at)}`, by];
  const cells = texts.map((text, place) => el("td", { "data-label": LABELS[place] }, text));
  return el("tr", {}, el("td", { "data-label": "request" }, button), ...cells);
}

async function read(cursor) {
  const asked = filter;
  const query = new URLSearchParams({ limit: PAGE, ...filter, ...(cursor && { cursor }) });
  try {
    const page = await ask(`requests?${query}`);
    // Another list was chosen meanwhile.
    if (asked !== filter) return;
    if (!cursor) byId("requests-rows").replaceChildren();
    byId("requests-rows").append(...page.requests.map(row));
    next = page.next ?? null;
    const shown = byId("requests-rows").children.length;
    byId("requests-table").hidden = shown === 0;
    byId("requests-more").hidden = !next;
    say(byId("requests-note"), shown ? `${counted(shown, "request")}, the newest first.` : `There are none${next ? " among the newest" : ""}.`);
  } catch (error) {
    if (asked !== filter) return;
    next = cursor;
    say(byId("requests-note"), `The requests cannot be read: ${error.message}.`);
  }
}

byId("requests-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const written = Object.entries(FIELDS).map(([name, field]) => [name, field.value.trim()]);
  goToList("requests", written.filter(([, text]) => text));
});
follow(({ kind, id, query }) => {
  // Back, from a list with a filter to the page without one.
  const isLeft = !kind && Object.keys(filter).length > 0;
  if (id || (kind !== "requests" && !isLeft)) return;
  filter = {};
  for (const [name, field] of Object.entries(FIELDS)) {
    field.value = query.get(name) ?? "";
    if (field.value) filter[name] = field.value;
  }
  read(null);
});
byId("requests-more").addEventListener("click", () => {
  // A second press reads nothing twice.
  const cursor = next;
  next = null;
  if (cursor) read(cursor);
});

async function readSchedules() {
  const answer = await ask("schedules").catch(() => null);
  // Without an answer the earlier ones stay.
  if (!answer) return;
  const { schedules } = answer;
  byId("schedules").hidden = schedules.length === 0;
  byId("schedules-list").replaceChildren(...schedules.map(({ name, every, cron, time_zone: zone, count, length }) =>
    el("li", {}, el("b", {}, name), ` ${every ? `each ${every}` : `at ${cron} ${zone ?? "UTC"}`}: ${count} of ${length} characters`)));
}

readSchedules();
setInterval(() => document.hidden || readSchedules(), 30_000);
