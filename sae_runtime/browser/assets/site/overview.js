import { make } from "./shared/elements.js";

export async function show(place, site, sae, parameters) {
  place.append(make("h1", {}, "overview"), make("p", {}, String(parameters)));
}
