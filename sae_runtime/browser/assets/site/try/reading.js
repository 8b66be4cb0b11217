// The tokens of a typed text, each shaded by a feature, and the strongest features with a button that steers them.

import { getName } from "../data.js";
import { make, number, plain } from "../shared/elements.js";
import { tokenLine } from "../shared/token_line.js";
import { linkTo, nameOf } from "../words.js";
import { outliers, strongest } from "./fires_on.js";
import { latest } from "./latest.js";
import { ownSae, session } from "./session.js";

const SHOWN = 8; // features of the list before "all"

// onSteer(feature, seen): called by the button of a feature, with its value on this text. The element, which has the
// tokens, has `read(text)` and `features`, the element of the list.
export function readingBox(sae, { onSteer }) {
  let tokens = [], rest = "", own = "", chosen = null, shaded = null, pointed = null, all = false;
  const line = tokenLine({
    onChoose: (place) => { chosen = chosen === place ? null : place; showFeatures(); },
    onPoint: (place) => { pointed = place; showFeatures(); },
  });
  const note = make("p", { className: "note shade-note" }), title = make("h2", { className: "whose" }), list = make("ul", { className: "list" });
  const error = make("p", { className: "error", attributes: { role: "alert" } });
  const element = make("div", { className: "try-reading", hidden: true }, error, line, note);
  const features = element.features = make("div", { className: "strongest" }, title, list);
  const waiting = () => list.replaceChildren(make("li", { className: "note" }, "They are shown when a model is loaded."));

  const ask = latest(({ model, text }) => model.features(text), {
    done: (found) => {
      error.textContent = found.left_out ? `The model reads no more of a text: ${number(found.left_out)} tokens were left out.`
        : found.most ? `The server gives the ${found.most} strongest features of a token; weaker ones are not shown.` : "";
      ({ tokens, rest = "" } = found);
      if (chosen !== null && (chosen >= tokens.length || tokens[chosen]?.special)) chosen = null;
      showTokens();
    },
    failed: (failure) => { if (failure.name !== "AbortError") error.textContent = plain(failure.message); }, // a model that was let go
  });

  element.read = (text) => {
    const known = session.model && ownSae(session.model.about, sae);
    element.hidden = !session.model;
    if (!session.model) return waiting();
    line.hidden = note.hidden = features.hidden = !known;
    if (!known) {
      error.textContent = `The model ${plain(session.model.about.name)} does not have this SAE, so it cannot show its features.`;
      return;
    }
    own = known.name;
    if (text.trim()) ask({ model: session.model, text });
    else { tokens = []; rest = text; showTokens(); }
  };

  const wordOf = ({ text, name, special }) => plain((special && name) || text.trim() || text);
  const active = (token) => token.saes[own] ?? [];
  const strength = (token) => (shaded === null ? active(token)[0] : active(token).find(([feature]) => feature === shaded))?.[1] ?? 0;

  function showTokens() {
    const left = outliers(tokens, own), most = Math.max(...tokens.map((token, place) => token.special || left.has(place) ? 0 : strength(token)));
    line.show(tokens.map((token) => ({
      ...token, strength: Math.min(strength(token), most || Infinity),
      title: active(token).slice(0, 3).map(([feature, value]) => `${feature}: ${number(value)}`).join("\n"),
    })), chosen ?? Math.max(0, tokens.findIndex((token) => !token.special)), rest);
    note.replaceChildren(...(shaded === null ? ["The colour is each token's strongest feature."]
      : [`The colour is feature ${shaded}. `, make("button", { type: "button", className: "plain", on: { click: () => shade(null) } }, "Each token's strongest")]));
    if (left.size) note.append(` ${[...left].map((place) => `“${wordOf(tokens[place])}”`).join(", ")} is far above all others, so the list of the text leaves it out.`);
    showFeatures();
  }

  function shade(feature) {
    shaded = feature;
    showTokens();
  }

  function showFeatures() {
    const place = pointed ?? chosen, token = place === null ? null : tokens[place];
    const found = token ? active(token) : strongest(tokens, own);
    title.replaceChildren(token ? `Strongest features of “${wordOf(token)}”` : "Strongest features of the text",
      ...(token && pointed === null ? [" ", make("button", { type: "button", className: "plain", on: { click: () => { chosen = null; showFeatures(); } } }, "Whole text")] : []));
    const left = outliers(tokens, own);
    const most = Math.max(...tokens.filter((one, number) => one === token || !(one.special || left.has(number))).map((one) => active(one)[0]?.[1] ?? 0), 1e-9);
    const rows = (all ? found : found.slice(0, SHOWN)).map(([feature, value]) => row(feature, value, most));
    if (found.length > rows.length) {
      rows.push(make("li", { className: "more" }, make("button", { type: "button", on: { click: () => { all = true; showFeatures(); } } }, `All ${number(found.length)}`)));
    }
    list.replaceChildren(...(rows.length ? rows : [make("li", { className: "none" }, tokens.length ? "No feature is active." : "Type a text above.")]));
  }

  function row(feature, value, most) {
    const { link, told } = linkTo(sae, feature);
    getName(sae, feature).then((name) => { told.textContent = nameOf(name) ?? ""; }, () => {});
    const shadow = make("button", {
      type: "button", title: "Shade the tokens by this feature", attributes: { "aria-pressed": shaded === feature, "aria-label": `Shade the tokens by feature ${feature}` },
      on: { click: () => shade(shaded === feature ? null : feature) },
    }, "Shade");
    const steer = make("button", { type: "button", className: "steer", attributes: { "aria-label": `Steer feature ${feature}` }, on: { click: () => onSteer(feature, value) } }, "Steer");
    const part = make("span", { className: "part" });
    part.style.setProperty("--part", (value / most).toFixed(3));
    return make("li", {}, make("span", { className: "what" }, part, link), make("span", { className: "value" }, number(value)), make("span", { className: "acts" }, shadow, steer));
  }

  title.textContent = "Strongest features";
  waiting();
  return element;
}
