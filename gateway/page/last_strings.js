// The last strings, with their way through the system.

import { goToRequest } from "./address.js";
import { byId, el, moment, say, span } from "./dom.js";

const LABELS = ["string", "asked", "made by", "stored by", "marked by", "took"];
const STRING = 14;
const rows = [];

function row() {
  const button = el("button", { type: "button", class: "plain" });
  const cells = LABELS.slice(1).map((label) => el("td", { "data-label": label }));
  const row = { button, cells, item: el("tr", {}, el("td", { "data-label": "string" }, button), ...cells) };
  button.addEventListener("click", () => goToRequest(row.id));
  byId("last-rows").append(row.item);
  return row;
}

/** The time from one step to another. The clocks of two services may differ by more than that. */
function between(from, to) {
  const took = new Date(to) - new Date(from);
  return took < 0 ? "clocks differ" : span(took);
}

export function showLast(last) {
  byId("last-empty").hidden = last.length > 0;
  // A row under the pointer or the focus does not move.
  const list = byId("last-rows");
  const isPointedAt = list.matches(":hover") && matchMedia("(hover: hover)").matches;
  const held = rows.length > 0 && (isPointedAt || list.querySelector(":focus-visible") !== null);
  say(byId("last-held"), held ? "The list does not change while you point at it." : "");
  if (held) return;
  // The rows stay where they are, so that the focus does, too.
  while (rows.length < last.length) rows.push(row());
  rows.forEach((row, place) => {
    const way = last[place];
    row.item.hidden = !way;
    if (!way) return;
    row.id = way.id;
    const text = way.string ?? (way.cancelled_at ? "cancelled" : way.unread ? "too large to look up" : "on its way");
    say(row.button, text.length > STRING ? `${text.slice(0, STRING)}…` : text);
    row.button.setAttribute("aria-label", `The history of ${way.string ? `the string ${text.slice(0, STRING)}` : `a request, ${text}`}`);
    const took = way.received_at ? between(way.requested_at, way.received_at) : "…";
    const texts = [moment(way.requested_at, 3), way.generator, way.stored_by, way.marked_by, took];
    texts.forEach((text, cell) => say(row.cells[cell], text ?? (way.unread ? "?" : "…")));
  });
}
