// The dead letters: counted by reason, each with its body, and with buttons to replay and discard it if the deployment
// allows that. Their content is not trusted, so it only ever becomes text.

import { follow, goToList } from "./address.js";
import { confirm } from "./confirm.js";
import { ask, button, byId, counted, el, exact, hide, moment, onPress, say } from "./dom.js";

/** The pause in milliseconds between two reads of the list. */
const PAUSE = 5_000;

const list = byId("letters-list");

/** The number of dead letters, and of those that this page has removed since the last count. */
let known = -1;
/** By the last page that was read: the number of dead letters, and of those whose reasons are counted, and the sequence of
 * the last one. */
let [listed, among, until] = [0, 0, 0];
let mine = 0;
let allowed = false;
/** The sequence from which the furthest page was read, that from which the page after it is read, and whether there was
 * none when it was read. */
let [furthest, next, ended] = [1, 1, true];
/** Whether an action is under way. */
let busy = false;

/** The chosen reason, or null for all; and the number of dead letters with each reason. */
let chosen = null;
let reasons = [];

let read = -Infinity;
let reading;

export function allowControl(can) {
  if (can === allowed) return;
  allowed = can;
  // Buttons come or go with the letters.
  list.replaceChildren();
  if (known > 0) load();
}

/** Announces new dead letters, without changing a list that a person reads. Removed dead letters disappear. */
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
  // The time is a header, which may have any text.
  const when = Date.parse(letter.at) ? `at ${moment(letter.at, 3)}` : "at an unknown time";
  const headers = letter.headers.map(({ name, value }) => `${name}: ${value}`).join("\n");
  return [
    el("p", { class: "reason" }, letter.reason || "without a reason"),
    el("p", { class: "note" }, `${letter.subject}, dead-lettered ${when} by ${letter.by || "an unknown instance"}, after ${letter.attempts ?? "?"} ${letter.attempts === 1 ? "attempt" : "attempts"}`),
    el("pre", { tabindex: "0", "aria-label": "its body" }, letter.body || "(an empty body)"),
    el("details", {}, el("summary", {}, `${counted(letter.headers.length, "header")}, ${counted(letter.bytes, "byte")}`), el("pre", { tabindex: "0" }, headers)),
  ];
}

/** The actions on dead letters. */
const REPLAY = {
  word: "Replay",
  done: "Replayed",
  warning: "Fix the cause first.",
  one: (sequence) => ask(`dead-letters/${sequence}/replay`, {}),
  page: (reason, query) => ask(`dead-letters/replay?${reason ? `reason=${encodeURIComponent(reason)}&` : ""}${query}`, {}),
};
const DISCARD = {
  word: "Discard",
  done: "Discarded",
  warning: "Their messages are deleted. An accepted request that depends on one of them is cancelled.",
  one: (sequence) => ask(`dead-letters/${sequence}`, undefined, {}, "DELETE"),
  page: (reason, query) => ask(`dead-letters?reason=${encodeURIComponent(reason ?? "any")}&${query}`, undefined, {}, "DELETE"),
};

function item(letter) {
  const { sequence } = letter;
  const entry = el("li", { id: `letter-${sequence}`, tabindex: "-1" }, ...describe(letter));
  if (allowed) {
    const does = (action) => button(action.word, () => question(action, [sequence]), { "aria-label": `${action.word} dead letter ${sequence}` });
    const box = el("input", { type: "checkbox", value: sequence, "aria-label": `Select dead letter ${sequence}` });
    box.addEventListener("change", () => tell());
    entry.prepend(box);
    entry.append(does(REPLAY), " ", does(DISCARD));
  }
  return entry;
}

/** Removes an entry. If the focus is in it, the next entry gets it. */
function remove(entry) {
  if (entry.contains(document.activeElement)) (entry.nextElementSibling ?? entry.previousElementSibling ?? byId("letters-title")).focus();
  entry.remove();
}

const note = (text) => say(byId("letters-note"), text);
const told = (text) => say(byId("replay-note"), text);

/** The sequences of the selected dead letters. */
const selected = () => [...list.querySelectorAll("input:checked")].map((box) => Number(box.value));

/** The number of dead letters with the chosen reason, by the last count. */
const wanted = () => (chosen ? reasons.find(({ reason }) => reason === chosen)?.count ?? 0 : Math.max(known, 0));

/** Whether there may be more with the chosen reason: reasons are counted among the oldest dead letters only. */
const mayBeMore = () => chosen !== null && among < listed;

/** Tells what is shown. If a button goes with it, `next` gets the focus. */
function tell(next = list.lastElementChild ?? byId("letters-title")) {
  const shown = list.childElementCount;
  hide(byId("letters-more"), ended && shown >= wanted(), next);
  const rest = wanted() > shown && !mayBeMore() ? ` (${exact(wanted() - shown)})` : "";
  say(byId("letters-more"), `Show the next ones${rest}`);
  const [some, which] = [selected().length, chosen ? `all ${chosen}` : "all"];
  for (const [id, { word }] of [["replay-all", REPLAY], ["discard-all", DISCARD]]) {
    hide(byId(id), !allowed || known === 0, byId("letters-title"));
    say(byId(id), some ? `${word} ${exact(some)}` : `${word} ${which}`);
  }
  if (known === 0) note("There are no dead letters.");
  else if (mayBeMore()) note(`${exact(shown)} with the reason ${chosen}${ended ? "" : " so far"}, the oldest first.`);
  else if (wanted() === 0) note(`There are no dead letters with the reason ${chosen}.`);
  else note(shown < wanted() ? `${exact(shown)} of ${exact(wanted())}, the oldest first.` : "");
  const groups = [[null, "all", Math.max(known, 0)], ...reasons.map(({ reason, count }) => [reason, reason, count])];
  const buttons = groups.map(([reason, word, count]) => {
    const button = ofReason(reason);
    say(button, `${word} ${exact(count)}`);
    button.setAttribute("aria-pressed", reason === chosen);
    return button;
  });
  const wantedButtons = reasons.length > 1 || chosen ? buttons : [];
  const there = [...byId("letters-reasons").children];
  const isSame = there.length === wantedButtons.length && there.every((button, place) => button === wantedButtons[place]);
  // A button that is moved loses the focus.
  if (!isSame) byId("letters-reasons").replaceChildren(...wantedButtons);
}

/** The buttons that choose a reason. They are kept, so that they keep the focus. */
const reasonButtons = new Map();

function ofReason(reason) {
  if (!reasonButtons.has(reason)) {
    const button = el("button", { type: "button" });
    button.addEventListener("click", () => goToList("dead-letters", reason ? { reason } : {}));
    reasonButtons.set(reason, button);
  }
  return reasonButtons.get(reason);
}

follow(({ kind, query }) => {
  // Back, from the letters of a reason to the page without one.
  const isLeft = !kind && chosen !== null;
  // In the API, "any" means all reasons.
  const reason = query.get("reason") === "any" ? null : query.get("reason");
  if ((kind === "dead-letters" || isLeft) && reason !== chosen) choose(reason);
});

function choose(reason) {
  chosen = reason;
  [furthest, next, ended] = [1, 1, true];
  list.replaceChildren();
  load();
}

/** Reads the shown pages again. Entries that still exist stay unchanged. */
async function load() {
  clearTimeout(reading);
  reading = undefined;
  read = performance.now();
  const letters = [];
  let [from, page] = [1, null];
  do {
    from = page?.next ?? from;
    page = await get(from);
    if (!page) return;
    letters.push(...page.dead_letters);
  } while (page.next && page.next <= furthest);
  const there = new Set(letters.map((letter) => `letter-${letter.sequence}`));
  for (const entry of [...list.children]) if (!there.has(entry.id)) remove(entry);
  show({ ...page, dead_letters: letters }, from);
}

async function get(from) {
  const asked = chosen;
  try {
    const page = await ask(`dead-letters?from=${from}${asked ? `&reason=${encodeURIComponent(asked)}` : ""}`);
    // Another reason was chosen meanwhile.
    return asked === chosen ? page : null;
  } catch (error) {
    if (asked !== chosen) return null;
    note(`The dead letters cannot be read: ${error.message}.`);
    known = -1;
    return null;
  }
}

function show(page, from) {
  const added = page.dead_letters.filter((letter) => !byId(`letter-${letter.sequence}`)).map(item);
  list.append(...added);
  const last = page.dead_letters.at(-1)?.sequence ?? from - 1;
  [furthest, next, ended] = [from, page.next ?? last + 1, !page.next];
  ({ total: listed, reasons, counted: among, until } = page);
  [known, mine] = [listed, 0];
  tell(added[0]);
}

onPress(byId("letters-more"), async () => {
  const from = next;
  const page = await get(from);
  if (page) show(page, from);
});

/** Does the action, once it is confirmed, with some dead letters, or with all that have the chosen reason. */
function question(action, some) {
  if (busy) return;
  // The reasons are counted among the oldest only.
  const least = !some.length && chosen && among < listed ? "at least " : "";
  const number = some.length || (chosen ? wanted() : listed);
  const what = some.length === 1 ? `dead letter ${some[0]}` : `${least}${counted(number, "dead letter")}`;
  // Those of now: no letter that comes, and no reason that is chosen, while the question is open or the action is under way.
  const [last, reason] = [until, chosen];
  confirm(`${action.word} ${what}? ${action.warning}`, some.length === 1 ? `${action.word} it` : `${action.word} them`, async () => {
    const buttons = document.querySelectorAll("#letters .choice button, #letters-list button");
    busy = true;
    // Not disabled, because then the pressed one would lose the focus.
    for (const button of buttons) button.ariaDisabled = "true";
    await (some.length ? each(action, some) : all(action, reason, last));
    for (const button of buttons) button.ariaDisabled = null;
    busy = false;
    load();
  });
}

async function each(action, some) {
  let [done, first] = [0, ""];
  for (const sequence of some) {
    try {
      await action.one(sequence);
      done += 1;
      mine += 1;
      const entry = byId(`letter-${sequence}`);
      if (entry) remove(entry);
    } catch (error) {
      first ||= error.message;
    }
  }
  told(`${action.done} ${exact(done)}${done < some.length ? `; ${exact(some.length - done)} stayed, the first because ${first}` : ""}.`);
}

async function all(action, reason, last) {
  let [query, done, kept, first] = [`from=1&until=${last}`, 0, 0, ""];
  let said = performance.now();
  try {
    while (query) {
      const page = await action.page(reason, query);
      done += page.done;
      kept += page.kept.length;
      first ||= page.kept[0]?.why;
      query = page.next && `from=${page.next}&until=${page.until}`;
      // A screen reader reads each of them.
      if (performance.now() - said < PAUSE) continue;
      said = performance.now();
      told(`${action.done} ${exact(done)} so far.`);
    }
    told(`${action.done} ${exact(done)}${kept ? `; ${exact(kept)} stayed, the first because ${first}` : ""}.`);
  } catch (error) {
    told(`${action.done} ${exact(done)}, then: ${error.message}.`);
  }
}

byId("replay-all").addEventListener("click", () => question(REPLAY, selected()));
byId("discard-all").addEventListener("click", () => question(DISCARD, selected()));
