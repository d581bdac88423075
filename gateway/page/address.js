// The address of what is open: #/requests/<id> is the history of a request. So reloading keeps it, Back closes it,
// and it can be sent to somebody.

const PATTERN = /^#\/requests\/([0-9a-f-]{36})$/;

const opened = () => PATTERN.exec(location.hash)?.[1] ?? null;

/** The address of the history of a request. */
export const addressOf = (id) => new URL(`#/requests/${id}`, location.href).href;

/** Goes to the history of a request. */
export function go(id) {
  if (opened() === id) dispatchEvent(new Event("hashchange"));
  else location.hash = `#/requests/${id}`;
}

/** Leaves it. */
export function leave() {
  if (opened()) history.replaceState(null, "", location.pathname + location.search);
}

/** Calls this with the id that is to be open, or null, now and whenever it changes. */
export function follow(show) {
  const tell = () => show(opened());
  addEventListener("hashchange", tell);
  tell();
}
