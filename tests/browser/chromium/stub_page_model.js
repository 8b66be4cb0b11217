// A stand-in for the model of a page, quick and told by hand: a word's features are its letters, a text's vector counts
// them, and an edit changes one number of the vector. window.stub says how slow it is and whether it fails, and counts.
const stub = window.stub = { wait: 0, fail: "", steps: 4, loads: 0, embeds: [], closed: 0, ...window.stub };
const pause = (milliseconds) => new Promise((go) => setTimeout(go, milliseconds));
const letters = (text) => [...text].filter((sign) => /[a-z]/.test(sign)).map((sign) => sign.charCodeAt(0) - 97);

export class PageModel {
  constructor(about, folder) {
    this.about = { ...about, in: "page" };
    this.folder = folder;
    this.isClosed = false;
  }

  async load(onProgress) {
    stub.loads++;
    for (let step = 0; step <= stub.steps; step++) {
      await pause(stub.wait);
      if (this.isClosed) throw new Error("The model was closed.");
      if (stub.fail) throw new Error(stub.fail);
      onProgress({ loaded: this.about.bytes * step / stub.steps, total: this.about.bytes, what: this.folder });
    }
  }

  async features(text) {
    const words = [...text.matchAll(/(\s*)(\S+)/g)], special = (name) => ({ text: "", name, gap: "", special: true, saes: { sae: [[25, 99]] } });
    return { left_out: 0, tokens: [special("[CLS]"), ...words.map(([, gap, word]) => ({ text: word, gap, special: false, saes: { sae: falling(word) } }))] };
  }

  async embed(texts, edits) {
    stub.embeds.push({ texts, edits });
    await pause(stub.wait);
    return texts.map((text) => {
      const vector = new Float32Array(26).fill(0.01);
      for (const letter of letters(text)) vector[letter]++;
      for (const { feature, kind, value } of edits) {
        const now = vector[feature];
        vector[feature] = { set: value, add: now + value, scale: now * value, ablate: 0, cap: Math.min(now, value) }[kind];
      }
      return vector;
    });
  }

  async answer(prompt, edits, { tokens, onText, signal }) {
    let text = "";
    const word = edits.length ? ` ${edits.map(({ feature }) => feature).join(" ")}` : " plain";
    for (let count = 0; count < tokens; count++) {
      await pause(stub.wait);
      if (signal.aborted) return { text, tokens: count, seconds: 1 };
      text += word;
      onText(text);
    }
    return { text, tokens, seconds: 2 };
  }

  close() {
    stub.closed++;
    this.isClosed = true;
  }
}

function falling(word) {
  const counts = new Map();
  for (const letter of letters(word)) counts.set(letter, (counts.get(letter) ?? 0) + 1);
  return [...counts].sort((one, other) => other[1] - one[1] || one[0] - other[0]);
}
