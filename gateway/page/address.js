// The address of what is open: #/requests/<id> is the history of a request, #/requests?status=queued a list of them, and
// #/dead-letters?reason=failed the dead letters of a reason. So reloading keeps it, Back closes it, and it can be sent to
// somebody.

const ID = /^[0-9a-f-]{36}$/;

/** The list that was there last: what is closed leads back to it. */
let list = "";

/** What is open: its kind, and an id or what is asked for. */
function opened() {
  const [path, query] = location.hash.slice(1).split("?");
  const [, kind, id] = path.split("/");
  return { kind, id: ID.test(id ?? "") ? id : null, query: new URLSearchParams(query) };
}

/** The address of the history of a request. */
export const addressOf = (id) => new URL(`#/requests/${id}`, location.href).href;

/** Goes to the history of a request. */
export const go = (id) => open(`#/requests/${id}`);

/** Goes to a list of this kind, with this query. */
export const goToList = (kind, query) => open(`#/${kind}?${new URLSearchParams(query)}`);

function open(hash) {
  if (location.hash === hash) dispatchEvent(new Event("hashchange"));
  else location.hash = hash;
}

/** Leaves the history of a request. */
export function leave() {
  if (opened().id) history.replaceState(null, "", location.pathname + location.search + list);
}

/** Calls this with what is open, now and whenever it changes. */
export function follow(show) {
  const tell = () => {
    const what = opened();
    if (!what.id) list = location.hash;
    show(what);
  };
  addEventListener("hashchange", tell);
  tell();
}
