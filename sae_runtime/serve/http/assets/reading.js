// A text of the visitor, its tokens, and the features of the token that is chosen.

import { make, number, plain } from "./shared/elements.js";
import { placed } from "./shared/server.js";
import { tokenLine } from "./shared/token_line.js";
import { $, called, server, state, tell } from "./state.js";

const SHOWN = 12; // features of a token

let tokens = [];
let steer = () => {};
let after = () => {};
const line = tokenLine({ onChoose: showFeatures, onPoint: (place) => showFeatures(place ?? line.chosen) });

// onSteer(feature, label, value): a feature is to be edited; onRead(): the server has read a text.
export function startReading({ onSteer, onRead }) {
  [steer, after] = [onSteer, onRead];
  line.id = "tokens";
  $("tokens").replaceWith(line);
  $("read").addEventListener("click", read);
  $("text").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !$("read").disabled) read();
  });
}

export function forget() {
  tokens = [];
  $("seen").hidden = true;
  tell("read-error", null);
}

export const hasRead = () => tokens.length > 0;

export async function read() {
  tell("read-error", null);
  $("read").disabled = true;
  try {
    const body = { model: called(state.model), input: [$("text").value], features: SHOWN };
    const [text] = (await server.json("/v1/features", body)).data;
    tokens = placed(body.input[0], text.tokens).map((token) => (
      { ...token, features: token.features.filter((one) => one.sae === state.sae.name) }));
    $("seen").hidden = false;
    showTokens(Math.max(0, tokens.findIndex((token) => !token.special)));
    after();
  } catch (error) {
    tell("read-error", error);
  }
  $("read").disabled = false;
}

// Shades the tokens by the feature that is edited first, or each by its strongest feature.
export function showTokens(chosen = line.chosen) {
  if (!tokens.length) return;
  const edited = state.edits.find((edit) => edit.sae === state.sae.name)?.feature;
  const strength = (token) => (edited === undefined ? token.features[0]
    : token.features.find((one) => one.feature === edited || one.label === edited))?.value ?? 0;
  line.show(tokens.map((token) => ({ ...token, strength: strength(token), title: strongest(token) })), chosen);
  $("tokens-note").textContent = edited === undefined
    ? "The colour is each token's strongest feature. Click a token, or use the arrow keys." : `The colour is feature ${plain(edited)}.`;
  showFeatures(line.chosen);
}

const strongest = (token) => token.features.slice(0, 3)
  .map((one) => `${one.feature}${one.label ? ` ${plain(one.label)}` : ""}: ${number(one.value)}`).join("\n");

function showFeatures(place) {
  const token = tokens[place];
  if (!token) return;
  $("token-title").textContent = `“${plain(token.text)}”`;
  const most = Math.max(...tokens.filter((one) => !one.special || one === token).map((one) => one.features[0]?.value ?? 0), 1e-9);
  const editable = state.sae.edits && !$("steer").hidden;
  $("features").replaceChildren(...(token.features.length ? token.features.map((one) => make("li", {},
    make("span", { className: "id" }, String(one.feature)),
    make("span", {}, make("span", { className: "what" }, one.label ? plain(one.label) : ""),
      make("meter", { min: 0, max: most, value: one.value, attributes: { "aria-label": `feature ${one.feature}` } })),
    make("span", { className: "value" }, one.value.toFixed(2)),
    editable ? make("button", { on: { click: () => steer(one.feature, one.label, one.value) }, attributes: { "aria-label": `Steer feature ${one.feature}` } }, "Steer") : null,
  )) : [make("li", {}, "No feature is active.")]));
}
