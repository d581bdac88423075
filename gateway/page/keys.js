// The keyboard shortcuts. The lessons, the view for a projector, the theme and the help have a button as well.

import { follow } from "./address.js";
import { byId, el, say } from "./dom.js";
import { kept } from "./storage.js";
import { toggleLessons } from "./lessons.js";

const root = document.documentElement;

/** The theme of the operating system, then light, then dark. */
const THEMES = [null, "light", "dark"];

function setTheme(theme) {
  if (theme) root.dataset.theme = theme;
  else delete root.dataset.theme;
  say(buttons.get("t"), `Theme: ${theme ?? "system"}`);
  kept.write("theme", theme);
}

function nextTheme() {
  setTheme(THEMES[(THEMES.indexOf(root.dataset.theme ?? null) + 1) % THEMES.length]);
}

/** Shows only the flow, the time axis and an open lesson, larger, on one screen. */
function project() {
  const on = root.classList.toggle("projector");
  buttons.get("p").setAttribute("aria-pressed", on);
  if (on) scrollTo(0, 0);
}

const help = () => byId("keys").showModal();
const focus = (id) => () => byId(id).focus();

const KEYS = [
  ["l", "Lessons", "the lessons beside the flow", toggleLessons],
  ["p", "Projector", "the flow, the last five minutes and an open lesson on one screen, larger", project],
  ["t", "Theme", "as the system has it, light, dark", nextTheme],
  ["?", "Keys", "this help", help],
  ["/", null, "look up a request by its id", focus("find")],
  ["a", null, "ask for strings", focus("count")],
];

const buttons = new Map(KEYS.filter(([, word]) => word).map(([key, word, , act]) => {
  const button = el("button", { type: "button", "aria-keyshortcuts": key }, word);
  button.addEventListener("click", act);
  byId("tools").append(button);
  return [key, button];
}));
buttons.get("p").setAttribute("aria-pressed", "false");
follow(({ lesson }) => buttons.get("l").setAttribute("aria-pressed", lesson !== null));
byId("keys-list").append(...[...KEYS, ["Esc", null, "close the dialog"]].map(([key, , what]) =>
  el("div", {}, el("dt", {}, el("kbd", {}, key)), el("dd", {}, what))));
byId("keys-close").addEventListener("click", () => byId("keys").close());

// A key without Control or Alt can be pressed by mistake, or by speech input.
const on = byId("keys-on");
on.checked = kept.read("keys") !== "off";
on.addEventListener("change", () => kept.write("keys", on.checked ? null : "off"));

addEventListener("keydown", (event) => {
  if (!on.checked) return;
  const typing = event.target.closest?.("input, select, textarea");
  if (typing || event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  const act = KEYS.find(([key]) => key === event.key)?.[3];
  if (!act) return;
  event.preventDefault();
  act();
});

setTheme(THEMES.includes(kept.read("theme")) ? kept.read("theme") : null);
