// Asks before an irreversible action.

import { byId, say } from "./dom.js";

const dialog = byId("confirm");
let agreed;

/** Asks the question, and does the action once a person agrees. `words` is the text of the button. */
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
