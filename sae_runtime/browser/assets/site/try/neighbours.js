// The sentences of a list that are nearest to the text, before and after its edits.

import { make, number, plain } from "../shared/elements.js";
import { cosine, moves, ranked, rankList } from "../shared/ranking.js";
import { after, latest } from "./latest.js";
import { session } from "./session.js";

const SHOWN = 10, BATCH = 8, MOST = 500, LONGEST = 2000, PAUSE = 500;
const known = new WeakMap(); // model -> Map of a sentence to its vector, which no edit changes
let own = null; // the visitor's list, kept from page to page

const linesOf = (text) => [...new Set(text.split("\n").map((line) => line.trim().slice(0, LONGEST)).filter(Boolean))].slice(0, MOST);

// asked(): {text, edits} with the model's names of SAEs. The element has `update()`, to be called after each change.
export function neighboursBox(asked) {
  const status = make("p", { className: "note", attributes: { role: "status" } });
  const error = make("p", { className: "error", attributes: { role: "alert" } });
  const before = make("div"), afterEdits = make("div"), beside = make("div", {}, make("h2", {}, "With the edits"), afterEdits);
  const told = make("p", { className: "note" });
  const list = make("textarea", { rows: 8, spellcheck: false, id: "sentences" });
  const count = make("span");
  const reset = make("button", { type: "button" }, "Texts of the corpus");
  const element = make("div", { className: "neighbours" }, status, error,
    make("div", { className: "pair" }, make("div", {}, make("h2", {}, "Nearest sentences"), before), beside), told,
    make("details", {}, make("summary", {}, "The list of sentences, ", count), make("label", { htmlFor: "sentences" }, "One a line; yours if you like"), list, make("div", { className: "row" }, reset)));
  list.addEventListener("input", after(PAUSE, () => { own = list.value; element.update(); }));
  reset.addEventListener("click", () => { own = null; fill(); element.update(); });

  const fill = () => { list.value = own ?? (session.model?.about.sentences ?? []).map((text) => text.replace(/\s+/g, " ")).join("\n"); };

  const ask = latest(compare, {
    done: show,
    failed: (failure) => {
      status.textContent = "";
      if (failure.name !== "AbortError") error.textContent = plain(failure.message); // the model was let go
    },
  });

  async function compare({ model, text, edits, texts }) {
    const vectors = await vectorsOf(model, texts, (done) => { status.textContent = `Reading the list: ${number(done)} of ${number(texts.length)}`; });
    status.textContent = "";
    const [plainly] = await vectorsOf(model, [text]);
    const [steered] = edits.length ? await model.embed([text], edits) : [null];
    return { texts, vectors, plainly, steered };
  }

  function show({ texts, vectors, plainly, steered }) {
    error.textContent = "";
    const first = ranked(plainly, vectors);
    before.replaceChildren(rankList(first, texts, null, SHOWN));
    beside.hidden = !steered;
    told.textContent = steered ? `With edits the text has cosine ${cosine(plainly, steered).toFixed(3)} with itself without them.` : "Add an edit, and see which sentences come nearer.";
    if (!steered) return afterEdits.replaceChildren();
    const second = ranked(steered, vectors);
    afterEdits.replaceChildren(rankList(second, texts, moves(first, second), SHOWN));
  }

  element.update = () => {
    const model = session.model;
    if (!model) return;
    if (!list.value && own === null) fill();
    const { text, edits } = asked(), lines = linesOf(list.value);
    const texts = lines.filter((line) => line !== text.trim()); // the text is the nearest to itself
    count.textContent = `${number(lines.length)} lines`;
    if (!texts.length || !text.trim()) {
      error.textContent = texts.length ? "" : "Give some sentences to compare with, one a line.";
      return;
    }
    ask({ model, text, edits, texts });
  };
  return element;
}

// Vectors of texts without edits; those that were computed before are taken as they are.
async function vectorsOf(model, texts, tell = () => {}) {
  if (!known.has(model)) known.set(model, new Map());
  const kept = known.get(model);
  const missing = texts.filter((text) => !kept.has(text));
  for (let first = 0; first < missing.length; first += BATCH) {
    if (missing.length > BATCH) tell(texts.length - missing.length + first);
    const batch = missing.slice(first, first + BATCH);
    const vectors = await model.embed(batch, []);
    for (const [place, text] of batch.entries()) kept.set(text, vectors[place]);
  }
  const found = texts.map((text) => kept.get(text));
  if (kept.size > 4 * MOST) kept.clear(); // of texts that were typed on the way
  return found;
}
