// Keys of the site: next, previous, random, search, help. They rest while somebody types.

import { make } from "./shared/elements.js";

const KEYS = { n: "next", ArrowRight: "next", p: "previous", ArrowLeft: "previous", r: "random", "/": "search", "?": "help" };
const TOLD = [
  ["n or →", "next feature"], ["p or ←", "previous feature"], ["r", "random feature"], ["/", "find a feature"],
  ["?", "these keys"], ["Tab", "from text to text"], ["← →", "in a text or a picture: from value to value"], ["Esc", "close, or leave the search"],
];

// Listen to the keys; actions: {next, previous, random, search, help}.
export function listen(actions) {
  document.addEventListener("keydown", (event) => {
    if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey || isBusy(event.target)) return;
    const action = actions[KEYS[event.key]];
    if (!action) return;
    event.preventDefault();
    action();
  });
}

// Show the list of keys.
export function showHelp(dialog) {
  if (dialog.open) return;
  const close = make("button", { type: "button", className: "main", on: { click: () => dialog.close() } }, "Close");
  dialog.replaceChildren(
    make("h2", { id: "help-title" }, "Keys"),
    make("dl", { className: "keys" }, ...TOLD.flatMap(([key, what]) => [
      make("dt", {}, ...key.split(" or ").flatMap((one, place) => [place ? " or " : "", make("kbd", {}, one)])), make("dd", {}, what)])),
    close);
  dialog.showModal();
  close.focus();
}

// A field, a slider, a list or a dialog uses these keys itself.
function isBusy(target) {
  return target.isContentEditable || Boolean(target.closest?.("input, textarea, select, dialog, [role=slider], [role=tab], [role=option], [role=listbox]"));
}
