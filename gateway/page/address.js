// The address of what is open: #/requests/<id> is the history of a request, #/requests?status=queued a list of them,
// #/dead-letters?reason=failed the dead letters of a reason, and #/lessons/4 a lesson. So reloading keeps it, Back closes
// it, and it can be sent to another person.

import { keptByTab } from "./storage.js";

const ID = /^[0-9a-f-]{36}$/;

/** The list that was there last: what is closed leads back to it. */
let list = "";

/** The address of the lesson that is beside it: it stays, whatever else is opened, until it is closed. */
let beside = keptByTab.read("beside") ?? "";

function parse(hash) {
  const [path, query] = hash.slice(1).split("?");
  const [, kind, name = ""] = path.split("/");
  return { kind, name, query: new URLSearchParams(query) };
}

/** What is open: its kind, and an id or what is asked for; and the lesson: its number, "" for the list, or null. */
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
export const go = (id) => open(`#/requests/${id}`);

/** Goes to a list of this kind, with this query. */
export const goToList = (kind, query) => open(`#/${kind}?${new URLSearchParams(query)}`);

/** Goes to the lesson of this number, or to the list of the lessons. */
export const goToLesson = (number) => open(`#/lessons/${number}`);

/** Closes the lesson, and leaves what else is open. */
export function leaveLesson() {
  beside = "";
  keptByTab.write("beside", beside);
  if (opened().kind === "lessons") history.replaceState(null, "", location.pathname + location.search);
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
