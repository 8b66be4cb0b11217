// The answer of a causal language model to a prompt, always the most likely token, as Model.generate writes it.

import { Stream } from "./streaming.js";
import { asFloats } from "./tensors.js";

const PART = 128; // tokens of a prompt that are read in one run, so that a stop need not wait long

// Calls `onText` with the text so far. `isStopped` is asked between two runs, and `pause` lets messages come in.
export async function answerOf(host, tokenizer, told, prompt, edits, { tokens: most, chat, onText, isStopped, pause }) {
  const { about } = host;
  const { text: writes } = about;
  if (!writes) throw new Error(`${about.name} writes no text; read its features, or take its vectors`);
  if (!Number.isInteger(most) || most < 1) throw new Error(`the number of tokens must be 1 or more, got ${most}`);
  const ids = read(tokenizer, about, prompt, chat);
  const limit = writes.limit ?? Infinity;
  if (!ids.length) throw new Error("the prompt has no tokens; type some words");
  if (ids.length >= limit) {
    throw new Error(`the prompt has ${ids.length} tokens, and the model reads ${limit} with the answer; shorten it`);
  }
  const started = performance.now();
  const stream = new Stream(tokenizer, told);
  const keepsPast = about.inputs.past.length > 0;
  let past = null;
  let done = 0; // tokens whose keys and values are kept
  let text = "";
  const all = [...ids];
  const end = () => {
    const seconds = (performance.now() - started) / 1000;
    return { text: text + stream.end(), tokens: all.length - ids.length, seconds };
  };
  for (;;) {
    let logits = null;
    while (done < all.length) {
      if (isStopped()) return end();
      const part = keepsPast ? all.slice(done, done + PART) : all;
      const names = [writes.logits, ...about.inputs.past.map((one) => one.present)];
      const outputs = await host.run(part, names, { edits, past, read: done, keep: 1 });
      if (keepsPast) past = Object.fromEntries(about.inputs.past.map((one) => [one.input, outputs[one.present]]));
      done += part.length;
      if (done >= all.length) logits = lastRow(outputs[writes.logits]);
      await pause();
    }
    const id = largest(logits, edits);
    all.push(id);
    if (!keepsPast) done = 0; // the whole text is read again
    if (writes.stop_ids.includes(id)) return end();
    text += stream.push(id);
    onText(text);
    if (all.length - ids.length >= most || all.length >= limit) return end();
  }
}

// The tokens of a prompt; with `chat` the chat template's text stands around it.
function read(tokenizer, about, prompt, chat) {
  const template = chat ? about.text.chat : null;
  if (template) {
    const message = template.trims ? prompt.trim() : prompt;
    return tokenizer.encode(template.before + message + template.after, { framed: false }).map((token) => token.id);
  }
  const ids = tokenizer.encode(prompt).map((token) => token.id);
  const { begin } = about.special;
  return ids.length === 0 && begin ? tokenizer.encode(begin, { framed: false }).map((token) => token.id) : ids;
}

function lastRow(output) {
  const [, rows, size] = output.dims;
  const data = output.data.subarray((rows - 1) * size, rows * size);
  return asFloats({ data });
}

function largest(logits, edits) {
  let [best, least] = [0, Infinity];
  let isFinite = true;
  for (let i = 0; i < logits.length; i++) {
    if (Number.isNaN(logits[i])) isFinite = false;
    if (logits[i] > logits[best]) best = i;
    if (logits[i] < least) least = logits[i];
  }
  if (!isFinite || !Number.isFinite(logits[best]) || (logits.length > 1 && least === logits[best])) {
    const cause = edits.length ? "its edits make the model's numbers overflow; give smaller ones" : "the model is off";
    throw new Error(`the model's logits are NaN, infinite or all equal: ${cause}`);
  }
  return best;
}
