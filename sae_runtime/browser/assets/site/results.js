// Features in a table, as a search finds them.

import { folded } from "./matching.js";
import { make } from "./shared/elements.js";
import { linkTo, nameOf, unnamed } from "./words.js";

// The table of some features: their names, with the words of a query marked, and columns of values(row).
export function table(sae, rows, names, values, words) {
  return make("section", {}, make("div", { className: "wide" }, make("table", { className: "features" },
    make("thead", {}, make("tr", {}, ...["feature", ...names].map((name) => make("th", { scope: "col" }, name)))),
    make("tbody", {}, ...rows.map((row) => {
      const { link, told } = linkTo(sae, row.feature);
      told.append(...marked(nameOf(row) ?? unnamed(row), words));
      const tokens = row.label && row.tokens?.length ? make("small", {}, make("bdi", {}, ...marked(nameOf({ label: null, tokens: row.tokens }), words))) : null;
      return make("tr", {}, make("td", {}, link, tokens), ...values(row).map((value) => make("td", {}, value)));
    })))));
}

// A text with the words of the query marked, where folding keeps the places of letters.
function marked(text, words) {
  const plainly = folded(text);
  if (!words.length || plainly.length !== text.length) return [text];
  const places = words.map((word) => [plainly.indexOf(word), word.length]).filter(([place]) => place >= 0).sort((a, b) => a[0] - b[0]);
  const parts = [];
  let end = 0;
  for (const [place, length] of places) {
    if (place < end) continue;
    parts.push(text.slice(end, place), make("mark", {}, text.slice(place, place + length)));
    end = place + length;
  }
  return [...parts, text.slice(end)];
}
