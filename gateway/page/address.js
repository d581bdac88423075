// The address of the open view: #/requests/<id> is the history of a request, #/requests?status=queued a list,
// #/dead-letters?reason=failed the dead letters of a reason, and #/lessons/4 a lesson. So reloading keeps the view,
// Back closes it, and a person can send it to another one.

import { keptByTab } from "./storage.js";

const ID = /^[0-9a-f-]{36}$/;

/** The list to return to when the history or a lesson closes. */
let list = "";

/** The address of the lesson beside the flow. It stays until the lesson is closed, also while another view opens. */
let beside = keptByTab.read("beside") ?? "";

function parse(hash) {
  const [path, query] = hash.slice(1).split("?");
  const [, kind, name = ""] = path.split("/");
  return { kind, name, query: new URLSearchParams(query) };
}

/** The open view: its kind, and an id or a query; and the lesson: its number, "" for the list, or null. */
function opened() {
  const { kind, name, query } = parse(location.hash);
  if (kind === "lessons" || !location.hash) {
    beside = location.hash;
    keptByTab.write("beside", beside);
  }
  return { kind, id: ID.test(name) ? name : null, query, lesson: beside ? parse(beside).name : null };
}

/** The address of the history of a request. */
export const addressOf = (id) => new URL(`#/requests/${id}`, location.href).href;

/** Goes to the history of a request. */
export const goToRequest = (id) => open(`#/requests/${id}`);

/** Goes to a list of this kind, with this query. */
export const goToList = (kind, query) => open(`#/${kind}?${new URLSearchParams(query)}`);

/** Goes to the lesson of this number, or to the list of the lessons. */
export const goToLesson = (number) => open(`#/lessons/${number}`);

/** Closes the lesson, and leaves the other view open. */
export function leaveLesson() {
  beside = "";
  keptByTab.write("beside", beside);
  if (parse(location.hash).kind === "lessons") history.replaceState(null, "", location.pathname + location.search + list);
  dispatchEvent(new Event("hashchange"));
}

function open(hash) {
  if (location.hash === hash) dispatchEvent(new Event("hashchange"));
  else location.hash = hash;
}

/** Leaves the history of a request. */
export function leave() {
  if (opened().id) history.replaceState(null, "", location.pathname + location.search + (list || beside));
}

/** Calls `show` with the open view, now and at each change. */
export function follow(show) {
  const tell = () => {
    const view = opened();
    if (!view.id && view.kind !== "lessons") list = location.hash;
    show(view);
  };
  addEventListener("hashchange", tell);
  tell();
}
