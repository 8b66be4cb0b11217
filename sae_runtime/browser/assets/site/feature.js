import { make } from "./shared/elements.js";

export async function show(place, site, sae, parameters) {
  place.append(make("h1", {}, "feature"), make("p", {}, String(parameters)));
}
