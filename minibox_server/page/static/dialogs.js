// Questions. Each is a modal <dialog>: the browser keeps the focus inside it, closes it on Escape, and gives the focus
// back to where it was; where that was drawn anew meanwhile, it is given to what took its place.

import { AS_TYPED, button, field, focusAgain, hasNoFocus, make } from "./dom.js";

let numbered = 0;

/**
 * Open a dialog, and promise what it was closed with: null after Escape or Cancel, else what `confirm()` returns. An
 * error that it throws is shown, and the dialog stays open.
 *
 * `content` are elements; `yes` is the word on the button, null for a dialog that only shows something; `isDangerous`
 * gives the focus to Cancel instead. `isSent` says that closing the dialog takes nothing back of what `confirm` has
 * begun: what comes of that is waited for, and an error of it is thrown.
 */
export function ask(question) {
  const { title, content, yes = null, no = "Cancel", confirm = async () => true } = question;
  const { isDangerous = false, isSent = false } = question;
  numbered += 1;
  const id = `dialog-${numbered}`;
  const failed = make("p", { class: "failed", role: "alert", hidden: true });
  const agree = yes && make("button", { type: "submit", class: isDangerous ? "danger" : "main" }, yes);
  const refuse = button(no, () => dialog.close(), { autofocus: isDangerous });
  const form = make("form", { method: "dialog" }, make("h2", { id }, title), content, failed,
    make("div", { class: "actions" }, refuse, agree));
  const dialog = make("dialog", { "aria-labelledby": id }, form);
  const opener = document.activeElement;
  document.body.append(dialog);
  return new Promise((resolve) => {
    let answer = null;
    let confirming = null;
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      failed.hidden = true;
      agree.disabled = true;
      try {
        confirming = confirm();
        answer = await confirming;
        dialog.close();
      } catch (error) {
        failed.textContent = error.message;
        failed.hidden = false;
        if (dialog.open) confirming = null;
      } finally {
        agree.disabled = false;
        // A button that is switched off loses the focus.
        if (dialog.open && !dialog.contains(document.activeElement)) agree.focus();
      }
    });
    dialog.addEventListener("close", () => {
      dialog.remove();
      if (hasNoFocus()) focusAgain(opener);
      resolve(isSent ? confirming : answer);
    });
    dialog.showModal();
  });
}

/** Ask for the token; `wasRefused` says that there was one before. Promises a text, or null. */
export function askForToken(wasRefused) {
  const input = make("input", { type: "password", required: true, autofocus: true, ...AS_TYPED });
  return ask({
    title: "This daemon wants a token",
    content: [
      make("p", {}, wasRefused ? "That token was not the right one." : "It is the value of MINIBOX_API_TOKEN."),
      field("Token", input, "It is kept in this page's memory, until the page is closed."),
    ],
    yes: "Use it",
    // A header holds visible characters; anything else would be refused before it is sent.
    confirm: async () => {
      if (!/^[\x21-\x7e]+$/.test(input.value)) throw new Error("A token is visible characters, without spaces.");
      return input.value;
    },
  });
}
