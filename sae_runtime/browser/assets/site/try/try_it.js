// Try it: a text of the visitor, its features, and what the model does when they are edited.

import { make } from "../shared/elements.js";
import { callsOf } from "../calls.js";

// Puts the page into a place. parameters: of the address (text, edits). Gives back what ends it.
export async function show(place, site, sae, parameters) {
  const calls = callsOf(site, sae, [], { text: parameters.get("text") ?? "" });
  place.replaceChildren(make("section", {}, make("h2", {}, "Try it"), calls));
  return () => {};
}
