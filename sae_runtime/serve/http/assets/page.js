// The page of a server: what is loaded, a text and its features, steering, and how to call it. What the server or a
// person says becomes text nodes and nothing else (shared/elements.js).

import { make, plain } from "./shared/elements.js";
import { startCalls, updateCalls } from "./calls.js";
import { showLoaded } from "./loaded.js";
import { forget, hasRead, read, showTokens, startReading } from "./reading.js";
import { $, called, reads, server, state, steers } from "./state.js";
import { addEdit, forgetEdits, startSteering } from "./steering.js";

async function load() {
  try {
    const { models, site } = await server.json("/page/models");
    const first = !state.models.length;
    state.models = first ? models : state.models.map((old) => Object.assign(old, models.find((one) => one.name === old.name && one.version === old.version)));
    $("key-form").hidden = true;
    $("state").textContent = `${models.length} loaded at ${location.host}`;
    $("site").hidden = !site;
    if (first) start();
    showLoaded();
  } catch (error) {
    if (error.status !== 401) $("state").textContent = plain(error.message);
  }
}

function start() {
  const readable = state.models.filter((model) => reads(model) || model.kind !== "bundle");
  const options = (models) => models.map((model) => make("option", { value: state.models.indexOf(model) }, plain(called(model))));
  $("model").replaceChildren(...options(readable));
  $("called").replaceChildren(...options(state.models));
  $("called-label").hidden = state.models.length < 2;
  $("try").hidden = !readable.some(reads);
  chooseModel(readable[0] ?? state.models[0]);
}

function chooseModel(model) {
  state.model = model;
  $("model").value = $("called").value = state.models.indexOf(model);
  $("sae").replaceChildren(...model.saes.map((sae) => make("option", { value: sae.name }, plain(sae.name))));
  $("sae-label").hidden = model.saes.length < 2;
  state.sae = model.saes[0] ?? null;
  $("steer").hidden = !(steers(model) && ["vectors", "text"].includes(model.kind));
  $("of-vectors").hidden = model.kind !== "vectors";
  $("of-text").hidden = model.kind !== "text";
  $("read").disabled = !reads(model);
  forget();
  forgetEdits();
}

startReading({ onSteer: addEdit, onRead: load });
startSteering({ onChange: () => { showTokens(); updateCalls(); } });
startCalls();
$("key-form").addEventListener("submit", (event) => { event.preventDefault(); server.key = $("key").value.trim(); load(); });
$("model").addEventListener("change", () => chooseModel(state.models[Number($("model").value)]));
$("sae").addEventListener("change", () => {
  state.sae = state.model.saes.find((sae) => sae.name === $("sae").value);
  if (hasRead()) read();
});
load();
