// Contexts of a feature by quantile band: texts in which it is active, the strongest first.

import { make, number, plain } from "./shared/elements.js";
import { textOf } from "./tokens.js";
import { counted } from "./words.js";

const FIRST = 6, OTHERS = 2; // contexts of the strongest band and of each other that show at first
const remembered = { all: false, whole: false }; // as the reader last chose, on whichever feature

// The section with the contexts. per: "token" or "document".
export function contextsOf(about, per) {
  const section = make("section", { className: "contexts", attributes: { "aria-labelledby": "contexts-title" } });
  const list = make("div", {});
  const opened = new Set(); // bands that the reader opened
  const draw = () => list.replaceChildren(...about.bands.map((band, number) => bandOf(about, band, number, opened, draw)));
  const choice = (name, text) => {
    const button = make("button", { type: "button", attributes: { "aria-pressed": remembered[name] }, on: { click: () => {
      remembered[name] = !remembered[name];
      button.setAttribute("aria-pressed", remembered[name]);
      draw();
    } } }, text);
    return button;
  };
  draw();
  section.append(make("div", { className: "row title" }, make("h2", { id: "contexts-title" }, "Contexts"),
    ...(about.contexts.length ? [make("span", { className: "choices" }, choice("all", "All contexts"), choice("whole", "Whole texts"))] : [])));
  section.append(about.contexts.length ? list : make("p", {}, about.count ? "The store has no texts of this feature." : `This feature is dead: it is active on no ${per} of the store.`));
  return section;
}

function bandOf(about, [low, high, count], band, opened, redraw) {
  const contexts = about.contexts.filter((one) => one.band === band);
  const first = remembered.all || opened.has(band) ? contexts.length : band === 0 ? FIRST : OTHERS;
  const shown = contexts.slice(0, first);
  const more = contexts.length > first
    ? make("button", { type: "button", className: "plain more", on: { click: () => { opened.add(band); redraw(); } } }, `${contexts.length - first} more`) : null;
  const name = make("h3", { className: "band" }, make("span", {}, nameOf(about.bands, band)),
    make("span", { className: "range" }, `${number(low)} to ${number(high)}`), make("small", {}, `${counted(count, "match", "matches")} here`));
  return make("div", {}, name, shown.length ? make("ol", { className: "texts" }, ...shown.map((one) => contextOf(one, about))) : make("p", { className: "note" }, "No context of this band is stored."), more);
}

// "Top 20 %", "20 to 40 %": of the matches, by value.
function nameOf(bands, band) {
  const total = bands.reduce((sum, [, , count]) => sum + count, 0) || 1;
  const until = (last) => Math.round(100 * bands.slice(0, last).reduce((sum, [, , count]) => sum + count, 0) / total);
  return band === 0 ? `Top ${until(1)} %` : `${until(band)} to ${until(band + 1)} %`;
}

function contextOf(one, about) {
  const source = [one.file === null ? null : `${plain(one.file)}${one.row === null ? "" : `:${one.row}`}`, one.licence && plain(one.licence)].filter(Boolean).join(" · ");
  return make("li", {}, make("span", { className: "value" }, number(one.value)),
    textOf(one.parts, { peak: one.peak, max: about.max, whole: remembered.whole }), make("small", { className: "source" }, source));
}
