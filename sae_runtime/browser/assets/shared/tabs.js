// Programs in tabs, with a button that copies the one that shows.

import { arrows } from "./arrows.js";
import { copyButton } from "./copy_button.js";
import { make } from "./elements.js";

let chosen = ""; // the visitor's language stays the same from place to place

// programs: {name: () => text of the program}. The element has `update()`, which writes the program that shows again.
export function programTabs(programs, name = "Programs") {
  const names = Object.keys(programs);
  const id = `code-${Math.random().toString(36).slice(2, 10)}`;
  const code = make("pre", { id, tabIndex: 0, className: "code", attributes: { role: "tabpanel", "aria-label": name } });
  const tabs = names.map((one) => make("button", {
    type: "button", attributes: { role: "tab", "aria-controls": id }, on: { click: () => choose(one) },
  }, one));
  const current = () => names.includes(chosen) ? chosen : names[0];
  const list = make("div", {
    className: "row tabs", attributes: { role: "tablist", "aria-label": name },
    on: { keydown: (event) => arrows(event, names.indexOf(current()), names.length, (next) => { choose(names[next]); tabs[next].focus(); }) },
  }, ...tabs);
  const element = make("div", { className: "programs" }, make("div", { className: "row" }, list, copyButton(() => code.textContent, "Copy", code)), code);

  function choose(one) {
    chosen = one;
    element.update();
  }

  element.update = () => {
    for (const [number, tab] of tabs.entries()) {
      tab.setAttribute("aria-selected", names[number] === current());
      tab.tabIndex = names[number] === current() ? 0 : -1;
    }
    code.textContent = programs[current()]();
  };
  element.update();
  return element;
}
