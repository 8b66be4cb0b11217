// Edits in an address: set:371:8,ablate:12,scale:5:0.5@other. What stands behind @ is another SAE of the site.

import { KINDS } from "../shared/edit_list.js";

const MOST = 64; // edits, as many as a server takes by default
const LARGEST = 1e6; // of a value

// [{sae, feature, kind, value}] of an address; what is no edit of a feature of this site is passed over.
export function readEdits(text, site, sae) {
  const seen = new Set(), edits = [];
  for (const word of (text ?? "").split(",")) {
    const [, kind, number, given, other] = /^([a-z]+):(\d{1,9})(?::(-?[\d.]+(?:e-?\d+)?))?(?:@(.*))?$/.exec(word.trim()) ?? [];
    const of = other === undefined ? sae : site.saes.find((one) => encodeURIComponent(one.name) === other || one.name === other);
    const feature = Number(number), value = kind === "ablate" ? 0 : Number(given);
    if (!KINDS.includes(kind) || !of || feature >= of.d_sae || !(Math.abs(value) <= LARGEST) || seen.has(`${feature}@${of.name}`)) continue;
    seen.add(`${feature}@${of.name}`);
    edits.push({ sae: of.name, feature, kind, value });
  }
  return edits.slice(0, MOST);
}

export const writeEdits = (edits, sae) => edits.map(({ sae: name, feature, kind, value }) => [
  kind, ":", feature, kind === "ablate" ? "" : `:${value}`, name === sae.name ? "" : `@${encodeURIComponent(name)}`,
].join("")).join(",");
