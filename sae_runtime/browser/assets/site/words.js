// How features are called, and how shares and counts are written.

import { address } from "./route.js";
import { make, number, plain } from "./shared/elements.js";

// A share as people read it: 0.00338 -> "0.338 %".
export const share = (value) => value === null || value === undefined ? "–" : value === 0 ? "0" : `${small(100 * value)} %`;

// Three digits; without an exponent down to a millionth.
export function small(value) {
  if (value === null || value === undefined || Math.abs(value) >= 1e-3 || Math.abs(value) < 1e-6) return number(value);
  return value.toFixed(8).replace(/(\.0*[1-9]\d{0,2})\d*$/, "$1").replace(/0+$/, "");
}

// "1 token", "2,000 tokens".
export const counted = (count, one, many = `${one}s`) => `${number(count)} ${count === 1 ? one : many}`;

// What a row of an SAE's features is.
export const rowName = ({ per }) => per === "document" ? "document" : "token";

// A token without letters shows a sign for what it is.
export function visible(text) {
  if (text.trim() !== "") return plain(text);
  return text === "" ? "(empty)" : [...text].map((sign) => ({ "\n": "↵", "\t": "⇥" }[sign] ?? "␣")).join("");
}

// The name of a feature: its label, else its top tokens; null of a feature that has neither. Tokens are strings or
// [text, ...]. A label that is made of top tokens (source) says less than they do.
export function nameOf({ label, source, tokens }) {
  const texts = (tokens ?? []).map((token) => typeof token === "string" ? token : token[0]);
  if (label && !(source === "top tokens" && texts.length)) return plain(label);
  return texts.length ? texts.slice(0, 5).map((text) => visible(text).trim()).join(" · ") : null;
}

// What stands where a feature has no name.
export const unnamed = ({ density }) => density === 0 ? "never active" : "no name";

// A link to a feature: its number and its name, which may be set later.
export function linkTo(sae, feature, name = null) {
  const told = make("bdi", {}, name ?? "");
  const link = make("a", { className: "feature", href: address(sae, feature) }, make("span", { className: "id" }, String(feature)), " ", told);
  return { link, told };
}
