// Edits of features as inputs of the graph: f' = clip(scale * f + shift, low, high), as sae_runtime.core.edits has
// them. An edit is {sae, feature, kind, value}.

import { empty, floats, tensor } from "./tensors.js";

const LARGEST = 3.4028234663852886e38; // of float32

const KINDS = {
  set: (value) => ({ scale: 0, shift: value }),
  add: (value) => ({ shift: value }),
  scale: (value) => ({ scale: value }),
  ablate: () => ({ scale: 0 }),
  cap: (value) => ({ high: value }),
};

// The inputs of all SAEs for one run. `slots` has the number of features that are read of a token, by SAE.
export function asInputs(saes, edits, slots = {}) {
  const rows = checked(saes, edits);
  const feed = {};
  for (const sae of saes) {
    const own = rows.filter((row) => row.sae === sae.name);
    const shape = [1, own.length];
    const numbers = (name) => floats(own.map((row) => row[name]), shape);
    const made = {
      slots: () => tensor("int64", [slots[sae.name] ?? 0], [1]),
      features: () => tensor("int64", own.map((row) => row.feature), shape),
      scale: () => numbers("scale"),
      shift: () => numbers("shift"),
      low: () => numbers("low"),
      high: () => numbers("high"),
      gate: () => floats([1], [1, 1, 1]),
      direction: () => floats([0], [1, 1, 1]),
      when: () => empty("int64", [1, 0]),
      above: () => empty("float32", [1, 0]),
    };
    for (const name of sae.inputs) feed[name] = made[name.slice(sae.name.length + 1)]();
  }
  return feed;
}

// The edits as rows of numbers; an Error says what is wrong with one.
function checked(saes, edits) {
  const seen = new Set();
  return edits.map(({ sae: name, feature, kind, value }) => {
    const sae = saes.find((one) => one.name === name);
    if (!sae) {
      const names = saes.map((one) => one.name).join(", ") || "none";
      throw new Error(`the model has no SAE ${name}, it has ${names}; name one of them`);
    }
    if (!sae.edits) throw new Error(`${name} takes no edits: it is a transcoder, or was spliced to be read alone`);
    if (!Number.isInteger(feature) || feature < 0 || feature >= sae.d_sae) {
      throw new Error(`feature ${feature} does not exist, expected 0 to ${sae.d_sae - 1}`);
    }
    if (!Object.hasOwn(KINDS, kind)) throw new Error(`an edit is one of ${Object.keys(KINDS).join(", ")}, got ${kind}`);
    const number = kind === "ablate" ? 0 : Number(value);
    if (!(Math.abs(number) <= LARGEST) || value === "" || (value === null && kind !== "ablate")) {
      throw new Error(`an edit of feature ${feature} needs a finite number, got ${value}`);
    }
    const key = `${name}/${feature}`;
    if (seen.has(key)) throw new Error(`feature ${feature} is edited twice; give one edit for it`);
    seen.add(key);
    return { sae: name, feature, scale: 1, shift: 0, low: -LARGEST, high: LARGEST, ...KINDS[kind](number) };
  });
}
