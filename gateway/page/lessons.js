// The lessons beside the flow. A step is ticked once the gateway has seen in the flow what it leads to; the ticks, and what
// was predicted, stay in this browser.

import { follow, goToLesson, leaveLesson } from "./address.js";
import { confirm } from "./confirm.js";
import { ask, button, byId, el, hide, mark, moment, say } from "./dom.js";
import { kept } from "./storage.js";
import { askLab, hasLab } from "./lab.js";
import { elements } from "./lesson_text.js";

/** After how many milliseconds the hint of a step shows by itself. */
const PATIENCE = 20_000;

/** Where the commands find the gateway; and where it is for this page. */
const USUAL = "http://127.0.0.1:8080";
const here = new URL(".", location.href).href.replace(/\/$/, "");

/** The sections that are not folded in; and those that are worth reading once the steps are done. */
const BEFORE = ["Set the scene", "Predict", "Do"];
const AFTER = ["See", "Why"];

const pane = byId("lesson");
const body = byId("lesson-body");
const place = byId("lesson-place");
const tell = (text) => say(byId("lesson-live"), text);
const note = (text) => el("p", { class: "note" }, text);
const prose = (nodes) => el("div", { class: "text" }, ...elements(nodes));

/** Whether the page can run the commands that it shows: it belongs to a lab, and shows those for the lab. */
const isAtLab = () => hasLab() && place.value === "lab";

/** Whether a command of a lesson is under way. */
let isRunning = false;

/** What is shown: the number of a lesson, "" for the list, or null. */
let shown = null;

/** The numbers and titles of all lessons; the lesson that is shown, what is kept of it, and the elements of its steps. */
let titles = [];
let lesson = null;
let progress;
let steps = [];

/** The events of the step that is followed, and what waits to show its hint. */
let events;
/** Resolves the promise of the last `watch`. */
let begun = () => {};
let hinting;

/** What is kept of a lesson: when each step was done and what was seen then, of how many steps, and what was predicted. */
function recall(number) {
  try {
    return { ticks: [], ...JSON.parse(kept.read(`lesson-${number}`)) };
  } catch {
    return { ticks: [] };
  }
}

const keep = () => kept.write(`lesson-${lesson.number}`, JSON.stringify(progress));

export const toggleLessons = () => (pane.hidden ? goToLesson(kept.read("lesson") ?? "") : leaveLesson());

async function show(number) {
  const hadFocus = pane.contains(document.activeElement);
  shown = number;
  pane.hidden = number === null;
  byId("term").close();
  await read();
  if (shown !== number) return;
  if (!pane.hidden) byId("lesson-title").focus();
  // The button that opens it.
  else if (hadFocus) document.querySelector("[aria-keyshortcuts=l]").focus();
}

/** Reads what is to be shown, and shows it. */
async function read() {
  const number = shown;
  rest();
  lesson = null;
  if (number === null) return;
  kept.write("lesson", number);
  byId("lesson-all").hidden = number === "";
  let found;
  let parts;
  try {
    if (!titles.length) titles = (await ask("api/lessons")).lessons;
    found = number && (await ask(`api/lessons/${encodeURIComponent(number)}`));
  } catch (error) {
    parts = [note(`The lessons cannot be read: ${error.message}.`)];
  }
  // Another one was chosen meanwhile.
  if (shown !== number) return;
  lesson = found;
  parts ??= lesson ? whole() : [el("ol", {}, ...titles.map(entry))];
  say(byId("lesson-title"), lesson ? `${lesson.number}. ${lesson.title}` : "Lessons");
  body.replaceChildren(...parts);
  if (lesson) update();
  // Beside the flow, both are in sight.
  if (lesson && matchMedia("(min-width: 75rem)").matches) scrollTo({ top: 0 });
  // Where one was, beside the flow. Below it, the page scrolls.
  body.scrollTop = lesson && progress.ticks.some(Boolean) ? body.querySelector("[aria-current]")?.offsetTop : 0;
}

const link = ({ number, title }, before = "") => el("a", { href: `#/lessons/${number}` }, `${before}${number}. ${title}`);

function entry(it) {
  const { ticks, of } = recall(it.number);
  const done = ticks.filter(Boolean).length;
  return el("li", {}, link(it), el("span", { class: "note" }, !of ? "" : done < of ? `${done} of ${of} steps` : "done"));
}

function whole() {
  progress = recall(lesson.number);
  const next = titles.find(({ number }) => number === lesson.number + 1);
  return [prose(lesson.question), ...lesson.sections.map(section),
    el("p", { class: "choice" }, button("Start over", startOver), next ? link(next, "Next: ") : el("span", { class: "note" }, "This is the last lesson."))];
}

function section({ title, content, commands, steps: all }) {
  const inside = [prose(content)];
  if (title === "Set the scene") {
    if (isAtLab()) inside.push(note("This lab is already running, so press the button below. The command is for starting a lab."));
    inside.push(...command(commands, title, setScene));
  }
  if (title === "Predict") inside.push(prediction());
  if (title === "See") inside.unshift(predicted);
  if (title === "Do") {
    steps = all.map(step);
    inside.push(el("ol", { class: "steps" }, ...steps.map(({ item }) => item)), el("p", { class: "tick", id: "lesson-end" }));
  }
  if (BEFORE.includes(title)) return el("section", {}, el("h3", {}, title), ...inside);
  const when = AFTER.includes(title) && el("span", { class: "note" }, " after the steps");
  return el("details", {}, el("summary", {}, title, when || null), ...inside);
}

/** What was predicted, beside what is to be seen. */
const predicted = el("blockquote", { class: "predicted" });
const showPredicted = () => say(predicted, progress.predicted ? `You predicted: ${progress.predicted}` : "");

function prediction() {
  const field = el("textarea", { rows: 3 });
  field.value = progress.predicted ?? "";
  showPredicted();
  field.addEventListener("input", () => {
    progress.predicted = field.value;
    showPredicted();
    keep();
  });
  return el("label", {}, "Your prediction", field);
}

/** A text for lines that break between its words, and in JSON between its fields; not within them. */
const unbroken = (text) => text.split(/(\s+|(?<=,)(?="))/).map((part, index) => (index % 2 ? part : el("span", {}, part)));

/** The command for where one is: to copy, which calls `copied`, and under the lab to be run, by a button with this word. */
function command(commands, word, run, copied) {
  const others = [...place.options].filter(({ value }) => commands[value]).map(({ text }) => text);
  if (!commands[place.value]) return others.length ? [note(`For ${others.join(" and ")} alone.`)] : [];
  const words = unbroken(commands[place.value].replaceAll(USUAL, here));
  const [code, result] = [el("pre", {}, ...words), el("div", { class: "result", role: "status" })];
  const runs = button(word, async () => {
    // Two at once would spoil each other.
    if (isRunning) return tell("Another command is still under way.");
    isRunning = true;
    result.replaceChildren(note("Under way; it may take a minute."));
    result.replaceChildren(...(await run().catch((error) => [note(`It did not run: ${error.message}.`)])));
    isRunning = false;
    // What counts stands at the end.
    const output = result.querySelector("pre");
    if (output) output.scrollTop = output.scrollHeight;
  });
  runs.hidden = !isAtLab();
  const copies = button("Copy", () => {
    copied?.();
    copy(code);
  });
  return [code, el("p", { class: "choice" }, copies, runs), result];
}

async function copy(code) {
  try {
    await navigator.clipboard.writeText(code.textContent);
    tell("Copied");
  } catch {
    // The clipboard is only there on pages of https, and of this machine.
    getSelection().selectAllChildren(code);
    tell("It is selected, to be copied by the keys of your system");
  }
}

async function setScene() {
  // Meanwhile no step can be done: new replicas are part of the scene.
  rest();
  await askLab("scene", { lesson: lesson.number }).finally(() => lesson && update());
  return [note("The scene is set.")];
}

async function runStep(index) {
  const { number } = lesson;
  // It may be of an earlier lab.
  if (progress.ticks[index]) tick(index, null);
  await begin(index);
  // Another lesson was chosen meanwhile.
  if (lesson?.number !== number) return [];
  const ran = askLab("run", { lesson: number, step: index + 1 });
  steps[index].succeeds = ran.then(({ status }) => status === 0, () => false);
  const { output, status, done } = await ran;
  if (done && lesson?.number === number) tick(index, done);
  const shown = [el("pre", { tabindex: "0", "aria-label": "its output" }, ...unbroken(output.trimEnd() || "(no output)"))];
  if (status) steps[index].mine.hidden = false;
  if (status) shown.push(note(`It failed, with status ${status}, so the step is not done: run it again.`));
  return shown;
}

function step({ content, commands, prints, check, lab_only: labOnly, hint }, index) {
  const parts = {
    /** Whether it can be done where one is. */
    isHere: Boolean(commands[place.value]) || !Object.keys(commands).length,
    // Of other steps the gateway sees nothing.
    seen: check && !labOnly,
    labOnly,
    /** Whether its command, as it was run here last, succeeds. */
    succeeds: true,
    hint,
    now: el("p", { class: "now" }),
    help: el("p", { class: "help" }, `Hint: ${hint}`),
    ask: button("Hint", () => help(parts)),
    mine: button("I saw it", () => move(index, { at: new Date(), saw: "seen by you" })),
    what: el("span"),
  };
  const back = button("Take it back", () => move(index, null), { "aria-label": `Take it back: step ${index + 1}` });
  parts.tick = el("p", { class: "tick" }, parts.what, " ", back);
  parts.item = el("li", { tabindex: "-1" }, el("p", { class: "what" }, `Step ${index + 1}`), prose(content),
    ...command(commands, "Run it", () => runStep(index), () => begin(index)), ...(prints && place.value === "lab" ? printed(prints) : []), parts.now, parts.help,
    el("p", { class: "choice" }, parts.ask, parts.mine), parts.tick);
  return parts;
}

/** What the command prints under the lab. An ellipsis is for what varies. */
const printed = (text) => [el("details", {}, el("summary", {}, "What it prints"), el("pre", {}, ...unbroken(text)))];

/** Shows the hint; and the button, for what a person sees and the gateway does not. */
function help(parts) {
  parts.mine.hidden = false;
  hide(parts.ask, true, parts.item);
  parts.help.hidden = !parts.hint;
  if (parts.hint) tell(parts.help.textContent);
}

/** Ticks a step, or takes its tick back. */
function tick(index, done) {
  progress.ticks[index] = done;
  keep();
  update();
  tell(done ? `Step ${index + 1} is done: ${done.saw}. ${byId("lesson-end").textContent}` : `Step ${index + 1} is not done.`);
}

/** The same by a button, which goes with it: the focus moves on to the current step. */
function move(index, done) {
  tick(index, done);
  (steps.find(({ item }) => item.ariaCurrent) ?? steps[index]).item.focus();
}

/** What to do in a step whose programs the page does not see, unless it runs them itself. */
function unseen() {
  const see = "press \u201cI saw it\u201d once you have seen the result.";
  return isAtLab() ? `If you run this step here, the page ticks it. If you run it in a terminal, ${see}` : `The page cannot see this step: ${see}`;
}

/** Shows what is kept, and follows the first step that is not done and can be done where one is. */
function update() {
  rest();
  const current = steps.findIndex(({ isHere }, index) => isHere && !progress.ticks[index]);
  const of = steps.filter(({ isHere }) => isHere).length;
  if (progress.of !== of) {
    progress.of = of;
    keep();
  }
  say(byId("lesson-end"), current < 0 ? "All steps are done: read See and Why now." : "");
  steps.forEach((parts, index) => {
    const [done, is] = [progress.ticks[index], index === current];
    mark(parts.item, "state", done ? "done" : is ? "current" : "later");
    parts.item.ariaCurrent = is ? "step" : null;
    parts.help.hidden = true;
    say(parts.now, !is || parts.seen ? "" : unseen());
    parts.ask.hidden = !is || !parts.hint;
    parts.mine.hidden = !is || Boolean(parts.seen);
    parts.tick.hidden = !done;
    if (done) say(parts.what, `${moment(done.at)} ${done.saw}`);
  });
  if (current < 0) return;
  flowRests(steps[current].labOnly);
  hinting = setTimeout(() => help(steps[current]), PATIENCE);
  if (steps[current].seen) watch(steps[current], current);
}

/** Begins the current step anew: its check compares with the state of now, and not with one before the scene was set. */
const begin = async (index) => steps[index].seen && steps[index].item.ariaCurrent && watch(steps[index], index);

/** Follows a step, also while the page is hidden: its command may be typed elsewhere. Resolves once the gateway has the
 * state from which the step begins. */
function watch({ now, mine }, index) {
  unfollow();
  events = new EventSource(`api/lessons/${lesson.number}/steps/${index + 1}`);
  events.addEventListener("state", (event) => say(now, `now: ${JSON.parse(event.data).saw}`));
  const followed = events;
  events.addEventListener("done", async (event) => {
    // Otherwise the browser would ask again.
    followed.close();
    // It may come true before the command has ended, or although it fails: then the step is not done.
    const isDone = await steps[index].succeeds;
    if (followed !== events) return;
    if (isDone) tick(index, JSON.parse(event.data));
    else watch(steps[index], index);
  });
  events.addEventListener("error", (event) => {
    say(now, "now: no data");
    // A browser gives up for good after some answers.
    if (event.target.readyState === EventSource.CLOSED) mine.hidden = false;
  });
  return new Promise((resolve) => {
    begun = resolve;
    for (const name of ["state", "done", "error"]) followed.addEventListener(name, resolve, { once: true });
  });
}

/** Follows no step any longer, and resolves the promise of `watch`. */
function unfollow() {
  events?.close();
  events = null;
  begun();
}

/** In a step whose check reads what its command prints, the picture says little. */
function flowRests(rests) {
  byId("flow").classList.toggle("rests", Boolean(rests));
  say(byId("flow-rests"), rests ? "The result of this step is what its command prints. The flow does not show it." : "");
}

function rest() {
  unfollow();
  clearTimeout(hinting);
  flowRests(false);
}

function startOver() {
  confirm(`Start lesson ${lesson.number} over? Its ticks and what you predicted are cleared.`, "Start over", () => {
    kept.write(`lesson-${lesson.number}`, null);
    // The button goes with the rest.
    read().then(() => byId("lesson-title").focus());
  });
}

/** Shows the commands for where one is: as it was chosen, or as the gateway tells. */
export function showPlace() {
  place.value = kept.read("place") ?? (hasLab() ? "lab" : "compose");
  if (lesson) read();
}

place.addEventListener("change", () => {
  kept.write("place", place.value);
  showPlace();
});
byId("lesson-close").addEventListener("click", leaveLesson);
showPlace();
follow(({ lesson: number }) => number !== shown && show(number));
