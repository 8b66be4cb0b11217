// Edits of features, and what the model gives without and with them.

import { editList } from "./shared/edit_list.js";
import { plain } from "./shared/elements.js";
import { editObjects } from "./shared/programs.js";
import { cosine, moves, rankList, ranked } from "./shared/ranking.js";
import { $, called, server, state, tell } from "./state.js";

const PAUSE = 250; // milliseconds from a change to a comparison
const MULTIPLE = 5, TIMES = 2; // of a feature's largest activation: the most of a slider, and where it starts

let changed = () => {};
let timer = 0;
let running = null;
const nameOf = ({ feature, label }) => [feature, label].filter((one) => one !== null).join(" · ");
const list = editList(state.edits, { nameOf, onChange: (settled) => { showEdits(settled); later(); } });

// onChange(): the edits are others.
export function startSteering({ onChange }) {
  changed = onChange;
  list.id = "edits";
  $("edits").replaceWith(list);
  $("add").addEventListener("click", addNamed);
  $("feature").addEventListener("keydown", (event) => { if (event.key === "Enter") addNamed(); });
  $("compare").addEventListener("click", compare);
  $("stop").addEventListener("click", () => { running?.abort(); $("stop").hidden = true; });
}

export function forgetEdits() {
  running?.abort();
  clearTimeout(timer);
  state.edits.length = 0;
  $("compared").hidden = $("stop").hidden = true;
  tell("steer-error", null);
  list.update();
  showEdits(true);
}

export function addEdit(feature, label = null, seen = null) {
  if (!state.edits.some((edit) => edit.feature === feature && edit.sae === state.sae.name)) {
    const times = state.sae.multiples;
    const most = times ? MULTIPLE : Math.max(1, Math.ceil(4 * (seen ?? 5)));
    state.edits.push({ sae: state.sae.name, feature, label, kind: "set", times, most, value: times ? TIMES : most / 2 });
    list.update();
  }
  showEdits(true);
  $("steer").scrollIntoView({ block: "nearest" });
  later();
}

function addNamed() {
  const named = $("feature").value.trim();
  if (named && state.sae) addEdit(/^\d{1,9}$/.test(named) ? Number(named) : named);
  $("feature").value = "";
}

// The edits as programs have them (shared/programs.js).
export const programEdits = () => state.edits.map(({ sae, feature, label, kind, times, value }) => (
  { sae, feature, label: label ?? undefined, kind, value: times && kind !== "scale" ? `x${value}` : value }));

function showEdits(settled) {
  const multiples = state.edits.some((edit) => edit.times && !["scale", "ablate"].includes(edit.kind));
  $("edits-note").textContent = !state.edits.length ? "Take a feature of a token above, or name one."
    : multiples ? "1 is the feature's largest activation on the text that was measured; of scale, the activation as it is." : "";
  $("compare").disabled = !state.edits.length;
  if (settled) changed();
}

// --- Before and after ---

function later() {
  clearTimeout(timer);
  if (state.model.kind === "vectors" && state.edits.length) timer = setTimeout(compare, PAUSE);
}

async function compare() {
  clearTimeout(timer);
  if (!state.edits.length) return;
  running?.abort();
  const own = running = new AbortController();
  tell("steer-error", null);
  $("stop").hidden = state.model.kind !== "text";
  try {
    await (state.model.kind === "vectors" ? compareVectors : compareAnswers)(own.signal);
  } catch (error) {
    own.abort();
    if (running === own) tell("steer-error", error);
  }
  if (running === own) $("stop").hidden = true;
}

const asked = () => ({ edits: editObjects({ edits: programEdits(), several: state.model.saes.length > 1 }) });

async function compareVectors(signal) {
  const others = $("others").value.split("\n").filter((text) => text.trim());
  if (!others.length) throw new Error("Give some texts to compare with, one a line.");
  const model = called(state.model), text = $("text").value;
  const [[plainly, ...rest], [steered]] = await Promise.all([
    server.vectors(model, [text, ...others], null, signal), server.vectors(model, [text], asked(), signal)]);
  const before = ranked(plainly, rest), after = ranked(steered, rest);
  $("before").replaceChildren(rankList(before, others));
  $("after").replaceChildren(rankList(after, others, moves(before, after)));
  $("compared-note").textContent = `The text with edits has cosine ${cosine(plainly, steered).toFixed(3)} with itself.`;
  $("compared").hidden = false;
}

async function compareAnswers(signal) {
  $("compared").hidden = false;
  $("compared-note").textContent = "";
  await Promise.all([write($("before"), null, signal), write($("after"), asked(), signal)]);
}

async function write(place, sae, signal) {
  const text = document.createTextNode("");
  place.replaceChildren(text);
  const most = Math.min(Math.max(Math.round(Number($("new-tokens").value)) || 60, 1), 512);
  for await (const told of server.answer(called(state.model), $("prompt").value, sae, most, signal)) text.data += plain(told.text);
}
