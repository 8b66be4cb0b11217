// Try it: a text of the visitor, its features, and what the model does when they are edited.

import { callsOf } from "../calls.js";
import { address, keep, routeOf } from "../route.js";
import { copyButton } from "../shared/copy_button.js";
import { make, plain } from "../shared/elements.js";
import { answersBox, wishedTokens } from "./answers.js";
import { readEdits, writeEdits } from "./edit_words.js";
import { after } from "./latest.js";
import { loadBox } from "./load_box.js";
import { neighboursBox } from "./neighbours.js";
import { readingBox } from "./reading.js";
import { ownSae, prepare, session, watch } from "./session.js";
import { measured, steeringBox } from "./steering.js";

const READ_PAUSE = 200, KEEP_PAUSE = 300; // milliseconds from a key to a reading, and to a new address
const LONGEST_IN_ADDRESS = 2000;
const QUESTION = "What should I do this weekend?", TEXT = "Open the file and read the first line of it.";
let last = null; // the visitor's text and edits, while other pages are shown
let current = null; // the page that is shown

// Puts the page into a place. parameters: of the address (text, edits, off). Gives back what ends it.
export async function show(place, site, sae, parameters) {
  const given = parameters.has("text") || parameters.has("edits");
  const state = { text: null, edits: [], off: false, ...(given ? await stateOf(parameters, site, sae) : last) };
  const page = current = pageOf(place, site, sae, state);
  return () => {
    page.close();
    if (current === page) current = null;
  };
}

// The address has changed, and the page stays.
export function change(parameters) {
  return current?.change(parameters) ?? false;
}

async function stateOf(parameters, site, sae) {
  const edits = readEdits(parameters.get("edits"), site, sae);
  return { text: parameters.get("text"), edits: await Promise.all(edits.map((edit) => measured(site, edit))), off: parameters.get("off") === "1" };
}

function pageOf(place, site, sae, state) {
  const field = make("textarea", { id: "typed", rows: 2, spellcheck: false, value: state.text ?? "" });
  const label = make("label", { htmlFor: "typed" }, "Text");
  const box = loadBox(site), reading = readingBox(sae, { onSteer: (feature, seen) => steering.add(feature, seen) });
  const steering = steeringBox(site, sae, state, changed), effect = make("div", { className: "effect" });
  const calls = callsOf(site, sae, [], {});
  const link = copyButton(() => new URL(hashOf(), location.href).href, "Copy link");
  const effects = make("section", { hidden: true }, effect);
  place.classList.add("try-it");
  place.replaceChildren(
    make("section", {}, make("div", { className: "row title" }, make("h1", {}, "Try it"), link), box, label, field, reading),
    make("div", { className: "middle" }, make("section", {}, reading.features), make("section", {}, make("h2", {}, "Edits"), steering)),
    effects,
    make("section", {}, make("h2", {}, "The same in a program"), calls));

  let shown = null, model = null, isPrepared = false;
  const read = after(READ_PAUSE, () => { reading.read(state.text); shown?.update(); });
  const remember = after(KEEP_PAUSE, () => { if (isHere()) keep(hashOf()); });
  const unwatch = watch(follow);

  field.addEventListener("input", () => {
    state.text = field.value;
    read();
    later();
  });

  // Whether the address is still this page's: a visitor may have gone on, and the next page is not there yet.
  function isHere() {
    try {
      const route = routeOf(location.hash, site);
      return route.page === "try" && route.sae === sae;
    } catch {
      return false;
    }
  }

  function hashOf() {
    const text = state.text && state.text.length <= LONGEST_IN_ADDRESS ? state.text : null;
    return address(sae, "try", { text, edits: writeEdits(state.edits, sae), off: state.off && state.edits.length ? "1" : null });
  }

  // Edits with the model's names of SAEs; those of SAEs that it has not are left out.
  function editsFor(about) {
    return state.edits.flatMap(({ sae: name, feature, kind, value }) => {
      const own = ownSae(about, { name });
      return own?.edits ? [{ sae: own.name, feature, kind, value }] : [];
    });
  }

  const asked = () => ({ text: state.text ?? "", edits: state.off || !session.model ? [] : editsFor(session.model.about) });

  function changed() {
    shown?.update();
    later();
  }

  function later() {
    last = state;
    const about = session.model?.about ?? session.choices?.page ?? null;
    calls.update({
      edits: state.off ? [] : state.edits, text: state.text ?? "", tokens: wishedTokens(), about,
      server: about?.in === "server" ? { origin: location.origin, key: session.server.asksForKey } : null,
    });
    remember();
  }

  // The session has another model, or knows more of it.
  function follow() {
    const about = session.model?.about ?? session.choices?.page;
    label.textContent = about?.kind === "text" ? "Question" : "Text";
    if (state.text === null && isPrepared) {
      state.text = field.value = about?.kind === "text" ? QUESTION : about?.sentences?.[0] ?? TEXT;
      later();
      if (model) read();
    }
    if (session.model === model) return;
    model = session.model;
    shown?.stop?.();
    shown = model ? effectOf(model.about) : null;
    effect.replaceChildren(...(shown ? [shown] : []));
    effects.hidden = !shown;
    reading.read(state.text ?? "");
    shown?.update?.();
    later();
  }

  function effectOf(about) {
    const own = ownSae(about, sae);
    if (!own) return make("p", { className: "note" }, `The model ${plain(about.name)} does not have this SAE.`);
    if (!own.edits) return make("p", { className: "note" }, "The graph of this model reads this SAE and takes no edits of it.");
    if (about.kind === "vectors") return neighboursBox(asked);
    if (about.kind === "text") return answersBox(asked, later);
    return make("p", { className: "note" }, "This model gives neither vectors nor text, so the page shows no effect; a program below does.");
  }

  function turnTo(next) {
    state.edits.splice(0, Infinity, ...next.edits);
    state.off = next.off;
    if (next.text !== null) state.text = field.value = next.text;
    steering.update();
    reading.read(state.text ?? "");
    changed();
  }

  prepare(site).catch(() => {}).then(() => { isPrepared = true; follow(); });
  follow();
  later();
  return {
    change: (parameters) => {
      if (parameters.has("text") || parameters.has("edits")) stateOf(parameters, site, sae).then(turnTo, () => {});
      return true;
    },
    close: () => {
      for (const one of [read, remember]) one.cancel();
      shown?.stop?.();
      unwatch();
      box.close();
    },
  };
}
