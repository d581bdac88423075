// The list of requests: the newest first, a page at a time, filtered by state, priority and the instance that asked;
// and the schedules. The list is read only on demand, so that it costs nothing otherwise.

import { follow, goToList, goToRequest } from "./address.js";
import { ask, byId, clock, counted, day, el, hide, onPress, say } from "./dom.js";

const STATES = ["queued", "stored", "received", "cancelled", "doubled", "dead-lettered", "scheduled"];
const LABELS = ["state", "priority", "strings", "asked", "by"];
const PAGE = 25;

byId("requests-status").append(...STATES.map((state) => el("option", {}, state)));

/** The fields of the filter, by their names in the API. */
const FIELDS = { status: byId("requests-status"), priority: byId("requests-priority"), requested_by: byId("requests-by") };

/** The query of the shown list, or null to read it in any case; its filter, and the cursor of its next page. */
let shown = null;
let filter = {};
let next = null;

function row({ id, status, priority, count, length, requested_at: at, requested_by: by }) {
  const button = el("button", { type: "button", class: "plain" }, id);
  button.addEventListener("click", () => goToRequest(id));
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
    const rows = page.requests.map(row);
    byId("requests-rows").append(...rows);
    next = page.next ?? null;
    const all = byId("requests-rows").children.length;
    byId("requests-table").hidden = all === 0;
    hide(byId("requests-more"), !next, (rows[0] ?? byId("requests-form")).querySelector("button"));
    say(byId("requests-note"), all ? `${counted(all, "request")}, the newest first.` : `There are none${next ? " among the newest" : ""}.`);
  } catch (error) {
    if (asked !== filter) return;
    say(byId("requests-note"), `The requests cannot be read: ${error.message}.`);
  }
}

byId("requests-form").addEventListener("submit", (event) => {
  event.preventDefault();
  shown = null;
  const written = Object.entries(FIELDS).map(([name, field]) => [name, field.value.trim()]);
  goToList("requests", written.filter(([, text]) => text));
});
follow(({ kind, id, query }) => {
  // Back, from a list with a filter to the page without one.
  const isLeft = !kind && shown;
  const asked = String(query);
  if (id || (kind !== "requests" && !isLeft) || asked === shown) return;
  shown = asked;
  filter = {};
  for (const [name, field] of Object.entries(FIELDS)) {
    field.value = query.get(name) ?? "";
    if (field.value) filter[name] = field.value;
  }
  // The cursor belongs to the earlier list.
  next = null;
  read(null);
});
onPress(byId("requests-more"), () => read(next));

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
