// What is loaded, what the visitor chose of it, and the server that is asked.

import { plain } from "./shared/elements.js";
import { Server } from "./shared/server.js";

export const $ = (id) => document.getElementById(id);

// edits: [{sae, feature, label, kind, value, most, times}]; times: the value is a multiple of the largest activation.
export const state = { models: [], model: null, sae: null, edits: [] };

export const server = new Server("/", (known) => {
  $("key-form").hidden = false;
  $("state").textContent = known ? "The server does not know this key." : "This server asks for a key.";
  $("key").focus();
});

export const reads = (model) => model.operations.includes("features");
export const steers = (model) => model.saes.some((sae) => sae.edits);

// The name under which the server is asked for a model: with the version where several have its name.
export const called = (model) => state.models.filter((one) => one.name === model.name).length > 1
  ? `${model.name}@${model.version}` : model.name;

// Shows the sentence of an error in its place, or nothing for null.
export function tell(id, error) {
  if (error?.name !== "AbortError") $(id).textContent = error ? plain(error.message) : "";
}
