// The numbers, the verdict by counts, and the audit.

import { ask, byId, count, counted, el, exact, mark, moment, say, span } from "./dom.js";

const TILES = [
  ["requested", "requested"],
  ["stored", "stored or cancelled"],
  ["received", "received"],
  ["pending", "pending"],
  ["redelivered", "redelivered"],
  ["dead_letters", "dead letters"],
  ["median", "round trip, median"],
  ["p99", "round trip, 99 %"],
];

const STAGES = [["waited", "waiting"], ["made", "working"], ["stored", "storing"], ["marked", "marking"]];

const tiles = new Map(TILES.map(([key, label]) => {
  const value = el("dd", { id: `number-${key}` }, "–");
  const tile = el("div", {}, el("dt", {}, label), value);
  byId("tiles").append(tile);
  return [key, { tile, value }];
}));

export function showNumbers({ totals, latency }) {
  for (const key of ["requested", "stored", "received", "pending", "redelivered", "dead_letters"]) {
    say(tiles.get(key).value, count(totals[key]));
    tiles.get(key).value.title = exact(totals[key]);
  }
  tiles.get("redelivered").value.title += ", as far as the broker remembers: a killed broker forgets some, so that the number may be negative";
  tiles.get("dead_letters").tile.classList.toggle("warn", totals.dead_letters > 0);
  const known = latency.round_trips > 0;
  const took = (milliseconds) => (!known ? "–" : latency.negative > 0 ? "clocks differ" : span(milliseconds));
  say(tiles.get("median").value, took(latency.median_ms));
  say(tiles.get("p99").value, took(latency.p99_ms));
  const stages = STAGES.map(([key, what]) => `${what} ${span(latency[key].median_ms)}, 99 % within ${span(latency[key].p99_ms)}`);
  say(byId("stages"), known && latency.negative === 0 ? `By stage, at the median: ${stages.join("; ")}.` : "");
  const sample = `a sample of ${latency.round_trips} round trips of the last ten seconds, by the clocks of both services`;
  for (const key of ["median", "p99"]) tiles.get(key).value.title = known ? sample : "no round trip has ended in the last ten seconds";
  judge(totals);
}

function judge({ requested, missing, written_twice: twice }) {
  const [state, word, note] = requested === 0
    ? ["none", "No requests yet", "Only the audit compares each string."]
    : missing > 0
      ? ["bad", `${exact(missing)} not accounted for`, "In each of the last samples, at least this many accepted requests were neither stored, pending nor dead letters. The audit names these requests, and verifies the count."]
      : twice > 0
        ? ["bad", `${counted(twice, "fact")} written twice`, "By counts. The audit names them."]
        : ["good", "No loss seen by counts", "By counts, each request whose fact the broker keeps is received, pending or a dead letter. Counts can hide a loss: a message that belongs to no request, or that is counted twice, makes up for a lost one. Only the audit compares each string."];
  mark(byId("verdict"), "state", state);
  say(byId("verdict-word"), word);
  say(byId("verdict-note"), note);
}

const WORDS = [
  ["complete", "complete"], ["cancelled", "of which cancelled"], ["pending", "pending"], ["dead_lettered", "dead-lettered"],
  ["scheduled", "scheduled"], ["lost", "lost"], ["doubled", "doubled"], ["unasked", "unasked"], ["too_old", "too old"],
];

let audited = "";
let isRunning = false;

/** The instance of the gateway that this page is connected to. */
let gateway;
export function setGateway(instance) {
  gateway = instance;
}

export function showAudit(audit) {
  // Each new connection brings it again.
  if (JSON.stringify(audit) === audited) return;
  audited = JSON.stringify(audit);
  const { running_since: since, trouble, judged_at: at, clean, verdict } = audit;
  const button = byId("audit-button");
  isRunning = Boolean(since);
  button.ariaDisabled = isRunning ? "true" : null;
  say(button, since ? "The audit is running" : "Run the whole audit");
  const result = byId("audit");
  if (since) {
    result.replaceChildren(el("p", {}, "The audit reads every fact and every queue; that may take a while."));
  } else if (trouble) {
    result.replaceChildren(el("p", {}, `The audit came to no verdict: ${trouble}.`));
  } else if (verdict) {
    const found = clean ? "Nothing lost, nothing doubled." : `NOT CLEAN: ${verdict.lost} lost, ${verdict.doubled} doubled.`;
    const word = verdict.cannot_tell ? `CANNOT TELL: ${verdict.cannot_tell}.` : found;
    const counts = WORDS.map(([key, label]) => el("div", {}, el("dt", {}, label), el("dd", {}, exact(verdict[key]))));
    const ids = ["lost", "doubled"].flatMap((kind) => verdict.ids[kind].map((id) => el("li", { class: "id" }, `${kind} ${id}`)));
    result.replaceChildren(el("p", {}, el("strong", {}, word), ` Audited at ${moment(at)}.`), el("dl", {}, ...counts), el("ul", {}, ...ids));
  } else {
    result.replaceChildren();
  }
}

byId("audit-button").addEventListener("click", async ({ currentTarget: button }) => {
  if (button.ariaDisabled) return;
  button.ariaDisabled = "true";
  const tell = (text) => {
    audited = "";
    byId("audit").replaceChildren(el("p", {}, text));
  };
  try {
    const { instance } = await ask("api/audit", {});
    if (instance !== gateway) tell(`The audit runs at ${instance}. Only the pages of that gateway show its result; this is one of ${gateway}.`);
  } catch (error) {
    tell(`The audit was not started: ${error.message}.`);
  }
  button.ariaDisabled = isRunning ? "true" : null;
});
