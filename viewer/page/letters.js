// The dead letters: each with its reason and its body, and another try where the deployment allows it.
// What is in them may be anything, so it only ever becomes text.

import { ask, byId, clock, el, exact, say } from "./dom.js";

let known = -1;
let allowed = false;
let next = null;

export function allowReplay(can) {
  allowed = can;
  // Buttons come or go with the letters.
  if (known > 0) load();
}

/** Loads the letters again when there are more or fewer than before. */
export function countLetters(count) {
  if (count === known) return;
  known = count;
  load();
}

/** A letter as elements. */
export function describe(letter) {
  const when = letter.at ? `at ${clock(letter.at, 3)}` : "at an unknown time";
  const headers = letter.headers.map(([name, value]) => `${name}: ${value}`).join("\n");
  return [
    el("p", { class: "reason" }, letter.reason || "without a reason"),
    el("p", { class: "note" }, `${letter.subject}, given up ${when} by ${letter.by || "somebody"}, after ${letter.attempts || "?"} attempts`),
    el("pre", { tabindex: "0", "aria-label": "its body" }, letter.body || "(an empty body)"),
    el("details", {}, el("summary", {}, `${letter.headers.length} headers, ${exact(letter.bytes)} bytes`), el("pre", { tabindex: "0" }, headers)),
  ];
}

function item(letter) {
  const parts = describe(letter);
  const entry = el("li", { id: `letter-${letter.sequence}` }, ...parts);
  if (allowed) {
    const button = el("button", { type: "button", "aria-label": `Replay dead letter ${letter.sequence}` }, "Replay");
    button.addEventListener("click", async () => {
      button.disabled = true;
      try {
        await ask(`/api/dead-letters/${letter.sequence}/replay`, {});
        told(`Dead letter ${letter.sequence} is in its queue again.`);
        entry.remove();
      } catch (error) {
        told(`Dead letter ${letter.sequence} stays: ${error.message}.`);
        button.disabled = false;
      }
    });
    entry.append(button);
  }
  return entry;
}

const note = (text) => say(byId("letters-note"), text);
const told = (text) => say(byId("replay-note"), text);

async function load(from = 1) {
  const list = byId("letters-list");
  try {
    const page = await ask(`/api/dead-letters?from=${from}`);
    if (from === 1) list.replaceChildren();
    list.append(...page.letters.map(item));
    next = page.next;
    const shown = list.childElementCount;
    byId("letters-more").hidden = !next || shown >= page.total;
    byId("replay-all").hidden = !allowed || page.total === 0;
    if (from === 1 && page.total === 0) note(known > 0 ? "" : "There are none: nothing was given up.");
    else if (shown < page.total) note(`${exact(shown)} of ${exact(page.total)}, the oldest first.`);
    else note("");
  } catch (error) {
    note(`They cannot be read: ${error.message}.`);
    known = -1;
  }
}

byId("letters-more").addEventListener("click", () => load(next));

const confirm = byId("confirm");
byId("replay-all").addEventListener("click", () => {
  say(byId("confirm-text"), `Replay all ${exact(Math.max(known, 0))} dead letters? What they died of should be mended first.`);
  confirm.showModal();
});
byId("confirm-no").addEventListener("click", () => confirm.close());
byId("confirm-yes").addEventListener("click", async () => {
  confirm.close();
  byId("replay-all").disabled = true;
  let [query, replayed, kept, first] = ["from=1", 0, 0, ""];
  try {
    while (query) {
      const page = await ask(`/api/dead-letters/replay?${query}`, {});
      replayed += page.replayed;
      kept += page.kept.length;
      first ||= page.kept[0]?.reason;
      // Only those that were there at the start: one that dies again is left for another time.
      query = page.next && `from=${page.next}&until=${page.until}`;
      told(`Replayed ${exact(replayed)} so far.`);
    }
    told(`Replayed ${exact(replayed)}${kept ? `; ${exact(kept)} stay, the first because ${first}` : ""}.`);
  } catch (error) {
    told(`Replayed ${exact(replayed)}, then: ${error.message}.`);
  }
  byId("replay-all").disabled = false;
});
