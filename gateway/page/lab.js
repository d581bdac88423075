// The buttons of the lab, which runs the system on this machine. No other deployment has them: only the lab passes its
// address and token to the page.

import { ask, button, byId, el, mark, say } from "./dom.js";

/** The pause in milliseconds between two reads of the processes. */
const PAUSE = 3_000;

const FIELDS = { rate: byId("lab-rate"), work_time: byId("lab-work"), failure_rate: byId("lab-failures") };

/** The address of the lab and its token, or null without a lab; undefined until the gateway has sent it. */
let lab;
let settings = {};
let lost = false;

export const hasLab = () => Boolean(lab);

/** Records the lab, or that there is none, and returns whether a lab is new. Each connection sends it again. */
export function setLab(now) {
  if (JSON.stringify(now) === JSON.stringify(lab)) return false;
  if (lab !== undefined) {
    // Another lab runs here now. The page's security policy allows only the lab that served it.
    location.reload();
    return false;
  }
  lab = now;
  byId("lab").hidden = !lab;
  look();
  return hasLab();
}

const note = (text) => say(byId("lab-note"), text);
const get = (path, body) => ask(`${lab.url}/${path}`, body, { Authorization: `Bearer ${lab.token}` });

/** Sends a request to the lab, and then reads its processes again. */
export const askLab = (path, body) => get(path, body).finally(look);

async function act(words, body) {
  note(`${words}: under way.`);
  await askLab("actions", body).then(() => note(`${words}: done.`), (error) => note(`${words}: ${error.message}.`));
}

/** A row for one process, with buttons to stop, kill and pause it. Returns the function that updates the row. */
function row(list, hasButtons) {
  let name = "";
  const words = el("span");
  const does = (word) => button(word, (it) => act(it.ariaLabel, { action: it.textContent.toLowerCase(), target: name }));
  const buttons = hasButtons ? ["Stop", "Kill", "Pause"].map(does) : [];
  const item = el("li", {}, words, " ", el("span", { class: "buttons" }, ...buttons));
  list.append(item);
  return (process) => {
    item.hidden = !process;
    if (!process) return;
    const { pid, state } = process;
    name = process.name;
    say(words, state === "ended" ? `${name}, ended` : `${name}, pid ${pid}, ${state}`);
    mark(item, "state", state);
    if (buttons.length) say(buttons[2], state === "paused" ? "Resume" : "Pause");
    for (const it of buttons) {
      it.hidden = state === "ended";
      it.ariaLabel = `${it.textContent} ${name}`;
    }
  };
}

/** The buttons of a service, or of the broker, and its processes. Returns the function that updates them. */
function group(title, target) {
  const [count, list, rows] = [el("b"), el("ul", { class: "processes" }), []];
  let running = 0;
  const does = (word, body, words = `${word} ${target}`) =>
    button(word, (it) => act(it.ariaLabel, { target, ...body() }), { "aria-label": words });
  const simple = (word) => does(word, () => ({ action: word.toLowerCase() }));
  const scale = (word, words, by) => does(word, () => ({ action: "scale", replicas: Math.max(0, running + by) }), words);
  const pause = does("Pause", () => ({ action: pause.textContent.toLowerCase() }));
  const buttons = target === "broker" ? [simple("Start"), simple("Kill")] : [
    simple("Start"), simple("Stop"), simple("Kill"), pause,
    el("span", { class: "scale" }, scale("−", `Fewer ${target}`, -1), count, scale("+", `More ${target}`, 1)), simple("Deploy"),
  ];
  byId("lab-services").append(el("div", { role: "group", "aria-label": title },
    el("h3", {}, title), el("p", { class: "buttons" }, ...buttons), list));
  return (processes) => {
    running = processes.filter(({ state }) => state !== "ended").length;
    say(count, running);
    say(pause, processes.some(({ state }) => state === "paused") ? "Resume" : "Pause");
    pause.ariaLabel = `${pause.textContent} ${target}`;
    while (rows.length < processes.length) rows.push(row(list, target !== "broker"));
    rows.forEach((show, place) => show(processes[place]));
  };
}

const GROUPS = {
  requestors: group("Requestors", "requestors"),
  generators: group("Generators", "generators"),
  brokers: group("Broker", "broker"),
};

async function look() {
  if (!lab) return;
  try {
    const state = await get("state");
    for (const [name, show] of Object.entries(GROUPS)) show(state[name]);
    for (const [name, field] of Object.entries(FIELDS)) {
      // A value that a person has typed stays until it is applied.
      if (field.value === (settings[name] ?? "")) field.value = state.settings[name];
    }
    settings = state.settings;
    if (lost) note("");
    lost = false;
  } catch (error) {
    lost = true;
    note(`The lab cannot be read: ${error.message}.`);
  }
}

setInterval(() => document.hidden || look(), PAUSE);

byId("lab-settings").addEventListener("submit", (event) => {
  event.preventDefault();
  const written = Object.entries(FIELDS).map(([name, field]) => [name, field.value.trim()]);
  const changes = Object.fromEntries(written.filter(([name, value]) => value !== settings[name]));
  const words = Object.entries(changes).map(([name, value]) => `${name.replace("_", " ")} ${value}`);
  act(`Set ${words.join(", ") || "nothing"}`, { action: "set", ...changes });
});
