// The history of one request, in a dialog that follows it until it is received; and the forms that lead there.

import { addressOf, follow, goToRequest, leave } from "./address.js";
import { confirm } from "./confirm.js";
import { ask, byId, clock, day, el, hide, moment, say, span } from "./dom.js";
import { describe } from "./dead_letters.js";

/** The pauses in milliseconds between two reads: at first, and after PATIENCE. */
const SOON = 500;
const LATER = 5_000;
const PATIENCE = 60_000;

/** The most strings of a request that are shown. */
const STRINGS = 20;

/** The final states of a request. */
const OVER = ["received", "cancelled", "doubled"];

const dialog = byId("history");
/** The timer of the next look, if there is one. */
let looking = null;
/** The last history that was read. */
let shown = "";

const isShown = (id) => dialog.open && byId("history-id").textContent === id;
const allowCancel = (can) => hide(byId("history-cancel"), !can, byId("history-close"));

follow(({ kind, id }) => {
  if (kind === "requests" && id) open(id);
  else if (dialog.open) dialog.close();
});

function open(id) {
  clearTimeout(looking);
  say(byId("history-id"), id);
  say(byId("history-where"), "reading its history");
  for (const part of ["history-steps", "history-strings", "history-letters"]) byId(part).replaceChildren();
  say(byId("history-copy"), "Copy its address");
  say(byId("history-note"), "");
  byId("history-trace").hidden = true;
  allowCancel(false);
  shown = "";
  if (!dialog.open) dialog.showModal();
  look(id, Date.now());
}

async function look(id, since) {
  looking = null;
  let state = "";
  try {
    const history = document.hidden ? null : await ask(`api/requests/${id}`);
    if (!isShown(id)) return;
    state = history?.request?.status;
    // Otherwise a person reads it, and may have selected or opened something.
    if (history && JSON.stringify(history) !== shown) show(history);
    if (history) shown = JSON.stringify(history);
  } catch (error) {
    if (!isShown(id)) return;
    shown = "";
    say(byId("history-where"), `Its history cannot be read: ${error.message}.`);
    // An invalid id stays invalid.
    if (error.outcome === "refused") return;
  }
  if (OVER.includes(state)) return;
  const isSoon = Date.now() - since < PATIENCE && state !== "dead-lettered" && !document.hidden;
  looking = setTimeout(() => look(id, since), isSoon ? SOON : LATER);
}

/** Shows the history. */
function show({ request, queues, dead_letters: letters, trace }) {
  const asked = request?.requested_at && `for ${request.count} of ${request.length} characters, by ${request.requested_by}`;
  const steps = [
    ["asked", asked && request.requested_at, asked],
    // An older generator does not record when it started.
    ...(request?.generated_at && !request.started_at ? [] : [["started", request?.started_at, `by ${request?.generated_by}`]]),
    ["made", request?.generated_at, `by ${request?.generated_by}`],
    ["stored", request?.stored_at, `by ${request?.stored_by}`],
    ["marked as received", request?.received_at, `by ${request?.received_by}${request?.status === "doubled" ? ", with OTHER strings" : ""}`],
  ];
  byId("history-steps").replaceChildren(...steps.map(([what, at, how]) => {
    if (!at) return el("li", {}, el("p", { class: "what" }, `not ${what} yet`));
    const after = asked && what !== "asked" ? `, after ${span(Math.max(0, new Date(at) - new Date(request.requested_at)))}` : "";
    return el("li", { class: "done" }, el("p", { class: "what" }, what), el("p", {}, `${moment(at, 3)}${after}, ${how}`));
  }));
  say(byId("history-where"), where(request, queues, letters));
  byId("history-trace").hidden = !trace;
  if (trace) byId("history-trace").href = trace;
  allowCancel(request?.requested_by && !request.stored_at && !OVER.includes(request.status));
  const strings = request?.values ?? [];
  const more = strings.length > STRINGS ? `\n… and ${strings.length - STRINGS} more` : "";
  const text = strings.slice(0, STRINGS).join("\n") + more;
  byId("history-strings").replaceChildren(...(strings.length ? [el("pre", { tabindex: "0", "aria-label": "its strings" }, text)] : []));
  byId("history-letters").replaceChildren(...letters.map((letter) => el("div", {}, el("h3", {}, "Dead letter"), ...describe(letter))));
}

function where(request, queues, letters) {
  if (request?.status === "received") return "It is complete.";
  if (request?.status === "scheduled") return `It is due on ${day(request.not_before)} at ${clock(request.not_before)}, by ${request.requested_by}.`;
  if (request?.status === "cancelled") return `It was cancelled at ${moment(request.cancelled_at, 3)}, by ${request.cancelled_by}.`;
  if (request?.status === "doubled") return "The strings that are marked as received differ from the stored ones.";
  if (queues.length) return `It is in ${queues.join(" and ")}.`;
  if (request ? request.status === "dead-lettered" : letters.length) return "It is a dead letter.";
  if (request?.requested_by) return "It is between two queues at this moment.";
  return "The broker has no record of it: it was not accepted yet, or its records have expired.";
}

byId("history-cancel").addEventListener("click", () => {
  const id = byId("history-id").textContent;
  confirm("Cancel this request? Its strings are not stored then.", "Cancel it", () => cancel(id));
});

async function cancel(id) {
  let said = "";
  try {
    await ask(`requests/${id}`, undefined, {}, "DELETE");
  } catch (error) {
    said = error.outcome === "refused"
      ? `It is not cancelled: ${error.message}.`
      : `Whether it is cancelled is unknown: ${error.message}. Press again: it is safe.`;
  }
  // The person may have closed it, or opened another one.
  if (!isShown(id)) return;
  say(byId("history-note"), said);
  if (!said) goToRequest(id);
}

document.addEventListener("visibilitychange", () => {
  if (document.hidden || !dialog.open || !looking) return;
  clearTimeout(looking);
  look(byId("history-id").textContent, Date.now());
});

byId("history-close").addEventListener("click", () => dialog.close());
dialog.addEventListener("close", () => {
  clearTimeout(looking);
  leave();
});

byId("history-copy").addEventListener("click", async (event) => {
  const address = addressOf(byId("history-id").textContent);
  try {
    await navigator.clipboard.writeText(address);
    say(event.target, "Copied");
  } catch {
    // Browsers offer the clipboard only to pages of https, and of this machine.
    say(byId("history-note"), address);
  }
});

/** The last submission whose outcome is unknown. Until it is accepted, a retry uses the same key. */
let unanswered = null;

function newKey() {
  // Browsers offer crypto.randomUUID only to pages of https, and of this machine.
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

byId("ask-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const button = event.target.querySelector("button");
  // Not disabled, because then it would lose the focus.
  if (button.ariaDisabled) return;
  button.ariaDisabled = "true";
  say(byId("ask-note"), "Asking.");
  const [count, length] = [byId("count").valueAsNumber, byId("length").valueAsNumber];
  const isRetry = unanswered?.count === count && unanswered.length === length;
  const key = isRetry ? unanswered.key : newKey();
  try {
    const { id } = await ask("requests", { count, length }, { "Idempotency-Key": key });
    unanswered = null;
    say(byId("ask-note"), `Accepted as ${id}.`);
    goToRequest(id);
  } catch (error) {
    // That a retry is not accepted says nothing about the try before, unless the key itself is refused.
    const isUnknown = error.outcome === "unknown" || (isRetry && error.status !== 409);
    unanswered = isUnknown ? { count, length, key } : null;
    say(byId("ask-note"), isUnknown
      ? `Whether it was accepted is unknown: ${error.message}. Press again: it is safe, and asks for nothing twice.`
      : `It was not accepted: ${error.message}.`);
  }
  button.ariaDisabled = null;
});

byId("find-form").addEventListener("submit", (event) => {
  event.preventDefault();
  goToRequest(event.target.elements.id.value);
});
