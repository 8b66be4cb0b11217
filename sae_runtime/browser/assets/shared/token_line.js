// The tokens of a text in a line: each shaded by a number, one of them chosen by click or arrow keys.

import { arrows } from "./arrows.js";
import { make, plain } from "./elements.js";

const DARKEST = 0.8; // the share of heat of the strongest token; text on it keeps its contrast

// onChoose(place), onPoint(place or null): called when a token is chosen, or pointed at. The element has
// `show(tokens, chosen, rest)`, where a token is {text, gap, name, special, strength, title}, `rest` the text behind the
// last one, and `chosen`, the place. A special token has no text, so its name is shown.
export function tokenLine({ name = "Tokens; arrow keys go from one to the next", onChoose, onPoint = () => {} }) {
  const line = make("p", {
    className: "tokens", attributes: { role: "listbox", "aria-label": name, "aria-orientation": "horizontal" },
    on: { keydown: (event) => arrows(event, line.chosen, spans.length, (place) => { choose(place); spans[place].focus(); }) },
  });
  let spans = [];
  line.chosen = 0;

  function choose(place) {
    mark(place);
    onChoose(place);
  }

  function mark(place) {
    line.chosen = Math.max(0, Math.min(place, spans.length - 1));
    for (const [number, span] of spans.entries()) {
      span.setAttribute("aria-selected", number === line.chosen);
      span.tabIndex = number === line.chosen ? 0 : -1;
    }
  }

  line.show = (tokens, chosen = line.chosen, rest = "") => {
    const focused = spans.includes(document.activeElement);
    const most = Math.max(...tokens.map((token) => token.special ? 0 : token.strength), 1e-9);
    spans = tokens.map((token, place) => {
      const span = make("span", {
        className: token.special ? "special" : "", title: token.title ?? "", attributes: { role: "option" },
        on: { click: () => choose(place), mouseenter: () => onPoint(place), mouseleave: () => onPoint(null) },
      }, visible(token));
      span.style.setProperty("--share", token.special ? 0 : Math.max(0, DARKEST * token.strength / most).toFixed(3));
      return span;
    });
    line.replaceChildren(...tokens.flatMap((token, place) => [document.createTextNode(plain(token.gap ?? "")), spans[place]]), plain(rest));
    mark(chosen);
    if (focused) spans[line.chosen]?.focus();
  };
  return line;
}

// A token of blanks alone would be a place that nobody can see or click.
function visible({ text, name, special }) {
  if (special) return plain(name || text || "·");
  if (/\S/.test(text)) return plain(text);
  return text === "" ? "·" : plain(text).replace(/ /g, "␣").replace(/\n/g, "↵\n").replace(/\t/g, "⇥\t");
}
