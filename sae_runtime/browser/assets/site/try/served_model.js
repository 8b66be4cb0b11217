// A model of `sae-runtime serve` at the address of this page, with the interface of the model in the page.

import { editObjects } from "../shared/programs.js";
import { placed } from "../shared/server.js";

const MOST_FEATURES = 100; // of a token; a server gives no more
const AT_ONCE = 64; // texts of a request

export class ServedModel {
  // server: shared/server.js; told: one of the models of /page/models; site: site.json; sentences: texts to compare with.
  constructor(server, told, site, sentences) {
    this.server = server;
    this.called = told.latest ? told.name : `${told.name}@${told.version}`;
    this.about = {
      name: this.called, kind: told.kind, bytes: 0, weights: null, agreement: null, sentences, in: "server",
      saes: told.saes.map((one) => ({ name: one.name, site: sameSae(one, told.saes, site), d_sae: one.d_sae, edits: one.edits })),
    };
  }

  async load() {}

  async features(text) {
    const told = (await this.server.json("/v1/features", { model: this.called, input: [text], features: MOST_FEATURES }))?.data?.[0]?.tokens;
    const isToken = (one) => Number.isInteger(one?.start) && Number.isInteger(one.end) && Array.isArray(one.features);
    if (!Array.isArray(told) || !told.every(isToken)) {
      throw new Error("The server gives no tokens with their features; look whether sae-runtime serve answers at this address.");
    }
    const tokens = placed(text, told).map((token) => ({
      text: token.text, gap: token.gap, name: token.token, special: token.special,
      saes: Object.fromEntries(this.about.saes.map(({ name }) => [name,
        token.features.filter((active) => active.sae === name).map((active) => [active.feature, active.value])])),
    }));
    const rest = Array.from(text).slice(Math.max(0, ...told.map((one) => one.end))).join("");
    const isCut = tokens.some(({ saes }) => Object.values(saes).some((active) => active.length >= MOST_FEATURES));
    return { tokens, rest, left_out: 0, most: isCut ? MOST_FEATURES : null };
  }

  async embed(texts, edits) {
    const vectors = [];
    for (let first = 0; first < texts.length; first += AT_ONCE) {
      vectors.push(...await this.server.vectors(this.called, texts.slice(first, first + AT_ONCE), this.asked(edits)));
    }
    return vectors.map((vector) => Float32Array.from(vector));
  }

  async answer(prompt, edits, { tokens = 60, onText = () => {}, signal } = {}) {
    const begun = performance.now();
    let text = "", pieces = 0, counted = null;
    try {
      for await (const piece of this.server.answer(this.called, prompt, this.asked(edits), tokens, signal)) {
        text += piece.text;
        counted = piece.tokens ?? counted;
        if (piece.text) pieces++;
        onText(text);
      }
    } catch (error) {
      if (error.name !== "AbortError") throw error; // a stopped answer is one that is shorter
    }
    this.about.chat = !this.server.withoutTemplate.has(this.called);
    return { text, tokens: counted ?? pieces, seconds: (performance.now() - begun) / 1000 };
  }

  close() {}

  asked(edits) {
    return edits.length ? { edits: editObjects({ edits, several: this.about.saes.length > 1 }) } : null;
  }
}

// The name in the site of an SAE of the server: the one of the same weights; where they are not known, the only one of its
// name, or of its size and place in the model.
function sameSae(told, all, site) {
  const known = site.saes.filter((one) => one.weights_sha256 && one.weights_sha256 === told.weights_sha256);
  if (known.length) return known[0].name;
  const open = site.saes.filter((one) => one.d_sae === told.d_sae && !(one.weights_sha256 && told.weights_sha256));
  const alike = open.filter((one) => one.name === told.name);
  if (alike.length === 1) return alike[0].name;
  const placedAlike = open.filter((one) => one.hook === told.hook);
  return placedAlike.length === 1 && all.filter((one) => one.d_sae === told.d_sae).length === 1 ? placedAlike[0].name : null;
}
