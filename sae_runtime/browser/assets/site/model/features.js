// The active features of each token of a text, as Model.features reads them: a token that fills its slots is read again
// with more.

import { asFloats } from "./tensors.js";
import { shown } from "./tokenize.js";

const MOST = { text: 1024, other: 4096 }; // tokens of a text: a language model computes the logits of each besides
const MORE = 4; // times the slots

export async function featuresOf(host, tokenizer, text) {
  const { about } = host;
  const saes = about.saes.filter((sae) => sae.reads);
  if (!saes.length) throw new Error(`${about.name} has no SAE that gives features; splice one into it`);
  const all = tokenizer.encode(text);
  const tokens = tokenizer.limited(all, about.kind === "text" ? MOST.text : MOST.other);
  const windows = tokenizer.windows(tokens, Math.min(about.limit, about.kind === "text" ? MOST.text : about.limit));
  const flat = windows.flat();
  const features = [];
  for (const window of windows) {
    if (window.length) features.push(...(await read(host, saes, window.map((token) => token.id))));
  }
  const { pieces, rest } = shown(text, flat);
  return {
    tokens: flat.map((token, n) => ({
      ...pieces[n], name: tokenizer.name(token.id), special: token.special, saes: features[n],
    })),
    rest,
    left_out: all.length - tokens.length,
  };
}

// For each token {sae: [[feature, value], ...]}, the largest value first.
async function read(host, saes, ids) {
  const found = ids.map(() => ({}));
  const slots = Object.fromEntries(saes.map((sae) => [sae.name, sae.slots]));
  let left = saes;
  while (left.length) {
    const asked = Object.fromEntries(left.map((sae) => [sae.name, slots[sae.name]]));
    const names = left.flatMap((sae) => [`${sae.name}_indices`, `${sae.name}_values`]);
    const outputs = await host.run(ids, names, { slots: asked });
    const again = [];
    for (const sae of left) {
      const [indices, values] = [outputs[`${sae.name}_indices`].data, asFloats(outputs[`${sae.name}_values`])];
      const width = outputs[`${sae.name}_values`].dims[2];
      let isFull = false;
      for (let token = 0; token < ids.length; token++) {
        const active = [];
        for (let slot = token * width; slot < (token + 1) * width; slot++) {
          if (!Number.isFinite(values[slot])) {
            throw new Error(
              `the text has features of ${sae.name} that are NaN or infinite, since the host's activation is or ` +
                "overflows; take another text",
            );
          }
          if (values[slot] > 0) active.push([Number(indices[slot]), values[slot]]);
        }
        found[token][sae.name] = active;
        isFull ||= active.length === width;
      }
      if (isFull && sae.more && width < sae.d_sae) {
        slots[sae.name] = Math.min(MORE * width, sae.d_sae);
        again.push(sae);
      }
    }
    left = again;
  }
  return found;
}
