// A button that copies a text and says so.

import { make } from "./elements.js";

const PAUSE = 1500; // milliseconds until the button has its own name again

// text(): what is copied. source: the element that shows it, which is selected where the browser forbids to copy; null: none.
export function copyButton(text, name, source = null) {
  const button = make("button", { type: "button", className: "copy", on: { click: copy } }, name);
  async function copy() {
    try {
      await navigator.clipboard.writeText(text());
      button.textContent = "Copied";
    } catch {
      if (source) getSelection().selectAllChildren(source);
      button.textContent = source ? "Selected" : "Not copied: the browser forbids it";
    }
    setTimeout(() => { button.textContent = name; }, PAUSE);
  }
  return button;
}
