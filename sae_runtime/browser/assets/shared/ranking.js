// Texts by their nearness to a vector, before and after edits.

import { make, number, plain } from "./elements.js";

export function cosine(one, other) {
  let product = 0, left = 0, right = 0;
  for (let i = 0; i < one.length; i++) {
    product += one[i] * other[i];
    left += one[i] ** 2;
    right += other[i] ** 2;
  }
  return product / Math.max(Math.sqrt(left * right), 1e-30);
}

// [{place, near}] of vectors, the nearest first; of equals, the earlier one.
export const ranked = (vector, vectors) => vectors.map((one, place) => ({ place, near: cosine(vector, one) }))
  .sort((one, other) => other.near - one.near || one.place - other.place);

// How far each place has risen from one ranking to the next: positive is nearer the top.
export function moves(before, after) {
  const ranks = new Map(before.map((one, rank) => [one.place, rank]));
  return new Map(after.map((one, rank) => [one.place, ranks.get(one.place) - rank]));
}

// A ranking as a list of texts with their cosines, of which the first `most` are shown; moved: as `moves` gives it, or null.
export const rankList = (ranks, texts, moved = null, most = Infinity) => make("ol", { className: "ranks" }, ...ranks.slice(0, most).map(({ place, near }) => {
  const move = moved?.get(place) ?? 0;
  return make("li", {}, make("span", { className: "text", title: plain(texts[place]) }, plain(texts[place])),
    make("span", { className: "near" }, near.toFixed(3),
      move ? make("span", { className: move > 0 ? "up" : "down", attributes: { "aria-label": `${move > 0 ? "up" : "down"} by ${number(Math.abs(move))}` } },
        ` ${move > 0 ? "↑" : "↓"}${Math.abs(move)}`) : null));
}));
