// Which features of an SAE are active on a text, by the model that the visitor loaded.

import { ownSae, session } from "./session.js";

// {tokens, features: [[feature, its largest value, places of its tokens], ...], the strongest first}; the model must be loaded.
export async function firesOn(sae, text) {
  const { model } = session, own = ownSae(model.about, sae);
  if (!own) throw new Error(`The model ${model.about.name} does not have the SAE ${sae.name}; choose another SAE, or serve its model.`);
  const { tokens } = await model.features(text);
  return { tokens, features: strongest(tokens, own.name) };
}

// [feature, its largest value, places of its tokens] over the text's own tokens, the strongest first.
export function strongest(tokens, name) {
  const found = new Map(), left = outliers(tokens, name);
  for (const [place, { special, saes }] of tokens.entries()) {
    if (special || left.has(place)) continue;
    for (const [feature, value] of saes[name] ?? []) {
      const known = found.get(feature) ?? { value: 0, places: [] };
      found.set(feature, { value: Math.max(known.value, value), places: [...known.places, place] });
    }
  }
  return [...found].map(([feature, { value, places }]) => [feature, value, places]).sort((one, other) => other[1] - one[1] || one[0] - other[0]);
}

const FEW = 4, FAR = 10;

// Places of tokens whose activations are far above those of all others, as the first token of many language models has
// them: there the stream is long, whatever the token means.
export function outliers(tokens, name) {
  const values = tokens.map(({ special, saes }) => special ? 0 : saes[name]?.[0]?.[1] ?? 0);
  const rising = values.filter((value) => value > 0).sort((one, other) => one - other);
  const usual = rising[Math.floor(rising.length / 2)];
  return new Set(rising.length < FEW ? [] : [...values.keys()].filter((place) => values[place] > FAR * usual));
}
