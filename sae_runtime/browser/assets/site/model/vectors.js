// A vector for each text, as Model.embed makes it by the files of the model's folder, with features edited.

import { normalised, pooled } from "./pooling.js";
import { asFloats } from "./tensors.js";

// `pause` lets the worker read its messages between two texts.
export async function vectorsOf(host, tokenizer, texts, edits, pause) {
  const { vectors, name } = host.about;
  if (!vectors) throw new Error(`${name} gives no vectors of texts; read its features, or let it answer`);
  const found = [];
  for (const text of texts) {
    const tokens = tokenizer.limited(tokenizer.encode(vectors.prompt + text), vectors.limit);
    if (!tokens.length) throw new Error("the text has no tokens, so the model computes nothing of it; type some words");
    const outputs = await host.run(tokens.map((token) => token.id), [vectors.output], { edits });
    const output = outputs[vectors.output];
    const numbers = asFloats(output);
    const [, t, d] = output.dims;
    const one = output.dims.length > 2 ? pooled(numbers, t, d, vectors.pooling, vectors.prompt_tokens) : numbers;
    const vector = vectors.normalise ? normalised(one) : Float32Array.from(one);
    if (!vector.every(Number.isFinite)) {
      const strong = "by its edits, which are too strong for this model; give smaller ones";
      const cause = edits.length ? strong : "in this model";
      throw new Error(`the vector of a text is NaN or infinite ${cause}`);
    }
    found.push(vector);
    await pause();
  }
  return found;
}
