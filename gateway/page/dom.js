// Small helpers for making and changing elements. Text only ever becomes text: nothing that comes from a
// message can become an element.

export const byId = (id) => document.getElementById(id);

/** An element with these attributes and children; children that are no elements become text. */
export function el(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== undefined && value !== null) element.setAttribute(key, value);
  }
  element.append(...children.filter((child) => child !== undefined && child !== null));
  return element;
}

/** A button that calls `act`, see `onPress`. */
export const button = (words, act, attributes = {}) => onPress(el("button", { type: "button", ...attributes }, words), act);

/** Calls `act` when the button is pressed. Until `act` is done, another press does nothing; the focus stays where it is. */
export function onPress(button, act) {
  button.addEventListener("click", async () => {
    if (button.ariaDisabled) return;
    button.ariaDisabled = "true";
    await act(button);
    button.ariaDisabled = null;
  });
  return button;
}

/** Hides an element, or shows it. If the hidden one has the focus, `next` gets it. */
export function hide(element, hidden, next) {
  if (hidden && element === document.activeElement) next.focus();
  element.hidden = hidden;
}

/** An element of a drawing. */
export function draw(name, attributes = {}) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}

/** Sets the text, if it differs: a screen reader reads out each text that is set. */
export function say(element, text) {
  const words = String(text);
  if (element.textContent !== words) element.textContent = words;
}

export function mark(element, name, value) {
  if (element.dataset[name] !== String(value)) element.dataset[name] = value;
}

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const short = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 2 });

/** A number for people. */
export const count = (number) => (number < 1e6 ? whole.format(number) : short.format(number));
export const exact = (number) => whole.format(number);

/** A number with its noun. */
export const counted = (number, noun) => `${exact(number)} ${noun}${number === 1 ? "" : "s"}`;

/** A rate a second. */
export const rate = (number) => (number > 0 && number < 9.95 ? number.toFixed(1) : count(number));

/** A number of milliseconds, in the unit that fits once it is rounded. */
export function span(milliseconds) {
  if (milliseconds < 9.95) return `${milliseconds.toFixed(1)} ms`;
  if (milliseconds < 999.5) return `${Math.round(milliseconds)} ms`;
  if (milliseconds < 59_950) return `${(milliseconds / 1000).toFixed(1)} s`;
  const seconds = Math.round(milliseconds / 1000);
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${minutes} min ${seconds % 60} s`;
  return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

/** The time of the day. */
export const clock = (at, digits = 0) =>
  new Date(at).toLocaleTimeString("en-GB", { fractionalSecondDigits: digits || undefined, hour: "2-digit", minute: "2-digit", second: "2-digit" });

/** The date. */
export const day = (at) => new Date(at).toLocaleDateString("en-GB");

/** The time of the day, after the date unless that is today. */
export const moment = (at, digits = 0) => `${day(at) === day(Date.now()) ? "" : `${day(at)} `}${clock(at, digits)}`;

/**
 * Sends a request to the gateway, or to the lab, which has another address. If there is no answer, or an error, throws
 * one with its detail, status and outcome: "refused", or else what the answer says, or else "unknown".
 */
export async function ask(path, body, headers = {}, method = body === undefined ? "GET" : "POST") {
  const json = { "Content-Type": "application/json", ...headers };
  const options = body === undefined ? { method, headers } : { method, body: JSON.stringify(body), headers: json };
  const asked = path.startsWith("http") ? "the lab" : "the gateway";
  let answer;
  let text;
  try {
    answer = await fetch(path, options);
    text = await answer.text();
  } catch {
    throw Object.assign(new Error(`${asked} does not answer`), { outcome: "unknown" });
  }
  const { ok, status } = answer;
  let value = {};
  let wrong = `${asked} answers ${status}`;
  try {
    value = text ? JSON.parse(text) : {};
    if (ok) return value;
  } catch {
    wrong += " with a body that is not JSON";
  }
  const isRefused = status >= 400 && status < 500;
  const outcome = isRefused ? "refused" : value?.outcome ?? "unknown";
  throw Object.assign(new Error(value?.detail ?? wrong), { outcome, status });
}
