// How to make the same edits elsewhere: in Python, with curl, with the client of openai.

import { make } from "./shared/elements.js";
import { curlOf, openaiOf, pythonOf } from "./shared/programs.js";
import { programTabs } from "./shared/tabs.js";
import { aboutModel } from "./try/about.js";

const LOCAL = "http://127.0.0.1:8080"; // where `sae-runtime serve` listens unless it is told otherwise

// edits: [{sae, feature, kind, value, label}] with the site's names of SAEs; without any, a feature is read and set.
// feature: number of a feature that is read; text: what is read; strength: the value of the feature's example.
// tokens: of an answer; about: of the model (PageModel.about), if it is known; server: {origin, key} where one is used.
// The element has `update({edits, text, ...})`, which writes the programs anew.
export function callsOf(site, sae, edits, options = {}) {
  let given = { edits, feature: null, text: "", strength: 8, tokens: 60, about: null, server: null, ...options };
  let known = null; // of the site's model, where there is one
  const call = () => callFor(sae, given, given.about ?? known);
  const tabs = programTabs({
    Python: () => pythonOf(call()), curl: () => curlOf(call()), openai: () => openaiOf(call()),
  }, "Programs that do the same");
  const note = make("p", { className: "note" }, "curl and openai ask a server: sae-runtime serve MODEL");
  const element = make("div", { className: "calls" }, tabs, note);
  element.update = (changed) => {
    given = { ...given, ...changed };
    note.hidden = Boolean(given.server);
    tabs.update();
  };
  aboutModel(site).then((about) => { known = about; tabs.update(); }, () => {}); // without a model, a model of vectors is shown
  return element;
}

// What the programs are made of (shared/programs.js).
function callFor(sae, given, about) {
  const saes = about?.saes ?? [];
  const called = (name) => saes.find((one) => one.site === name)?.name ?? name; // what the model calls it
  const example = given.feature === null ? [] : [{ sae: sae.name, feature: given.feature, kind: "set", value: given.strength, label: given.label }];
  return {
    kind: about?.kind ?? "vectors", model: about?.name ?? "model", chat: about?.chat ?? true,
    origin: given.server?.origin ?? LOCAL, key: given.server?.key ?? false,
    text: given.text, tokens: given.tokens, several: saes.length > 1,
    feature: given.feature === null ? null : { sae: called(sae.name), feature: given.feature },
    edits: (given.edits.length ? given.edits : example).map((edit) => ({ ...edit, sae: called(edit.sae ?? sae.name) })),
  };
}
