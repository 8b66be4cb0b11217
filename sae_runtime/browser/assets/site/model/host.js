// Runs of a model's graph on tokens: what model.json says it takes, and the outputs by name. Every input is fed in
// every run, and each text runs alone, so that no text changes another one's numbers.

import { asInputs } from "./edits.js";
import { empty, tensor } from "./tensors.js";

export class Host {
  constructor(session, about) {
    this.session = session;
    this.about = about;
  }

  // Outputs of a run. `past` has keys and values by input, of `read` tokens; null: of none.
  async run(ids, outputs, { edits = [], slots = {}, past = null, read = 0, keep = 0 } = {}) {
    const { inputs, saes } = this.about;
    const t = ids.length;
    const feed = { ...asInputs(saes, edits, slots), ...(past ?? this.emptyPast()) };
    const put = (port, numbers, shape) => {
      if (port) feed[port.name] = tensor(port.type, numbers, shape);
    };
    put(inputs.ids, ids, [1, t]);
    put(inputs.mask, new Array(read + t).fill(1), [1, read + t]);
    put(inputs.types, new Array(t).fill(0), [1, t]);
    put(inputs.positions, ids.map((_, i) => read + i + (inputs.positions?.first ?? 0)), [1, t]);
    const rank = inputs.keep?.rank ?? 2;
    put(inputs.keep, [keep], new Array(rank).fill(1));
    return this.session.run(feed, outputs);
  }

  emptyPast() {
    return Object.fromEntries(this.about.inputs.past.map((past) => [past.input, empty(past.type, past.shape)]));
  }
}
