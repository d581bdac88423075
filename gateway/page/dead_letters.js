// The dead letters: each with its reason and its body, and another try where the deployment allows it.
// Their content is not trusted, so it only ever becomes text.

import { ask, byId, clock, counted, el, exact, say } from "./dom.js";

/** How many milliseconds to wait before what has changed is read again. */
const PAUSE = 5_000;

const list = byId("letters-list");

/** How many there are, and how many of those that are gone went from here. */
let known = -1;
let mine = 0;
let allowed = false;
let next = null;
let read = -Infinity;
let reading;

export function allowControl(can) {
  if (can === allowed) return;
  allowed = can;
  // Buttons come or go with the letters.
  list.replaceChildren();
  if (known > 0) load();
}

/** Says when there are more than before, and leaves a list that is being read as it is. What is gone goes. */
export function countLetters(count) {
  if (count === known) return;
  const gone = known - count;
  const ours = gone > 0 && gone <= mine;
  mine = ours ? mine - gone : 0;
  const more = known >= 0 && gone < 0 && list.childElementCount > 0;
  known = count;
  if (more || ours) tell();
  else reading ??= setTimeout(load, Math.max(0, read + PAUSE - performance.now()));
}

/** A letter as elements. */
export function describe(letter) {
  const when = letter.at ? `at ${clock(letter.at, 3)}` : "at an unknown time";
  const headers = letter.headers.map(({ name, value }) => `${name}: ${value}`).join("\n");
  return [
    el("p", { class: "reason" }, letter.reason || "without a reason"),
    el("p", { class: "note" }, `${letter.subject}, given up ${when} by ${letter.by || "an unknown instance"}, after ${letter.attempts ?? "?"} ${letter.attempts === 1 ? "attempt" : "attempts"}`),
    el("pre", { tabindex: "0", "aria-label": "its body" }, letter.body || "(an empty body)"),
    el("details", {}, el("summary", {}, `${counted(letter.headers.length, "header")}, ${counted(letter.bytes, "byte")}`), el("pre", { tabindex: "0" }, headers)),
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
        await ask(`dead-letters/${letter.sequence}/replay`, {});
        told(`Dead letter ${letter.sequence} is in its queue again.`);
        mine += 1;
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

function tell() {
  const shown = list.childElementCount;
  byId("letters-more").hidden = shown >= known || !next;
  say(byId("letters-more"), `Show the next ones (${exact(Math.max(0, known - shown))})`);
  byId("replay-all").hidden = !allowed || known === 0;
  if (known === 0) note("There are none: nothing was given up.");
  else note(shown < known ? `${exact(shown)} of ${exact(known)}, the oldest first.` : "");
}

/** Reads the first ones again, and leaves those that are still there as they are. */
async function load() {
  clearTimeout(reading);
  reading = undefined;
  read = performance.now();
  const page = await get(1);
  if (!page) return;
  const there = new Set(page.dead_letters.map((letter) => `letter-${letter.sequence}`));
  for (const entry of [...list.children]) if (!there.has(entry.id)) entry.remove();
  show(page);
}

async function get(from) {
  try {
    return await ask(`dead-letters?from=${from}`);
  } catch (error) {
    note(`They cannot be read: ${error.message}.`);
    known = -1;
    return null;
  }
}

function show(page) {
  list.append(...page.dead_letters.filter((letter) => !byId(`letter-${letter.sequence}`)).map(item));
  const last = page.dead_letters.at(-1);
  if (last) next = last.sequence + 1;
  known = page.total;
  tell();
}

byId("letters-more").addEventListener("click", async () => {
  const page = await get(next);
  if (page) show(page);
});

const confirm = byId("confirm");
byId("replay-all").addEventListener("click", () => {
  say(byId("confirm-text"), `Replay ${counted(Math.max(known, 0), "dead letter")}? What they died of should be mended first.`);
  confirm.showModal();
});
byId("confirm-no").addEventListener("click", () => confirm.close());
byId("confirm-yes").addEventListener("click", async () => {
  confirm.close();
  byId("replay-all").disabled = true;
  let [query, replayed, kept, first] = ["from=1", 0, 0, ""];
  try {
    while (query) {
      const page = await ask(`dead-letters/replay?${query}`, {});
      replayed += page.done;
      kept += page.kept.length;
      first ||= page.kept[0]?.why;
      // Only those that were there at the start: one that dies again is left for another time.
      query = page.next && `from=${page.next}&until=${page.until}`;
      told(`Replayed ${exact(replayed)} so far.`);
    }
    told(`Replayed ${exact(replayed)}${kept ? `; ${exact(kept)} stay, the first because ${first}` : ""}.`);
  } catch (error) {
    told(`Replayed ${exact(replayed)}, then: ${error.message}.`);
  }
  byId("replay-all").disabled = false;
  load();
});
