// Which features of an SAE are active on a text, by the model of the visitor.

import { load, ownSae, prepare, session } from "./session.js";

// [{feature, max, count, token}, ...], the strongest first: its largest value, on how many tokens it is active, and the
// text of the token where it is strongest. A model that is not loaded is loaded first, the page's where there is one;
// onProgress({loaded, total, what}) tells of it.
export async function firesOn(site, sae, text, onProgress = () => {}) {
  const model = await readyModel(site, onProgress);
  const own = ownSae(model.about, sae);
  if (!own) throw new Error(`The model ${model.about.name} does not have the SAE ${sae.name}; choose another SAE, or serve its model.`);
  const { tokens } = await model.features(text);
  return strongest(tokens, own.name).map(([feature, max, places]) => {
    const value = (place) => tokens[place].saes[own.name].find(([one]) => one === feature)[1];
    return { feature, max, count: places.length, token: tokens[places.find((place) => value(place) === max)].text };
  });
}

// [feature, its largest value, places of its tokens] over the text's own tokens, the strongest first.
export function strongest(tokens, name) {
  const found = new Map();
  for (const [place, { special, saes }] of tokens.entries()) {
    if (special) continue;
    for (const [feature, value] of saes[name] ?? []) {
      const known = found.get(feature) ?? { value: 0, places: [] };
      found.set(feature, { value: Math.max(known.value, value), places: [...known.places, place] });
    }
  }
  return [...found].map(([feature, { value, places }]) => [feature, value, places]).sort((one, other) => other[1] - one[1] || one[0] - other[0]);
}

async function readyModel(site, onProgress) {
  await prepare(site);
  if (session.state !== "ready") {
    const { page, problem, server } = session.choices;
    if (!page && !server) throw new Error(`${problem} Make it again with a model: sae-runtime browse STORE MODEL -o SITE`);
    const stop = setInterval(() => session.progress && onProgress(session.progress), 100);
    try {
      await load(site, page ? "page" : "server");
    } finally {
      clearInterval(stop);
    }
  }
  if (session.state !== "ready") throw new Error(session.error || session.locked || "The model is not loaded; load it, and ask again.");
  return session.model;
}
