// A question before what cannot be taken back.

import { byId, say } from "./dom.js";

const dialog = byId("confirm");
let agreed;

/** Asks it, and does this once a person agrees: `words` are those of the button. */
export function confirm(question, words, action) {
  say(byId("confirm-text"), question);
  say(byId("confirm-yes"), words);
  agreed = action;
  dialog.showModal();
}

byId("confirm-no").addEventListener("click", () => dialog.close());
byId("confirm-yes").addEventListener("click", () => {
  dialog.close();
  agreed();
});
