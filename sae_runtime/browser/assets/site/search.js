import { make } from "./shared/elements.js";

export async function show(place, site, sae, parameters) {
  place.append(make("h1", {}, "search"), make("p", {}, String(parameters)));
}
