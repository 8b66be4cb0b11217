// Text of generated tokens, given as soon as it is certain, as sae_runtime.text.streaming gives it: no character is
// cut.

import { CHARACTER_OF_BYTE } from "./split.js";

const LONGEST = 3; // tokens that may wait for the end of a character, which has at most four bytes
const BYTE = /^<0x[0-9A-Fa-f]{2}>$/; // a token of one byte, where a tokenizer falls back on bytes

export class Stream {
  constructor(tokenizer, told) {
    this.tokenizer = tokenizer;
    this.silent = new Set((told.added_tokens ?? []).filter((token) => token.special).map((token) => token.id));
    const kinds = (told.decoder?.decoders ?? (told.decoder ? [told.decoder] : [])).map((part) => part.type);
    const isByteLevel = kinds.includes("ByteLevel") && kinds.every((kind) => kind === "ByteLevel" || kind === "Fuse");
    this.bytes = isByteLevel ? new TextDecoder("utf-8", { ignoreBOM: true }) : null;
    this.fallsBack = kinds.includes("ByteFallback");
    this.context = []; // the tokens of the last piece: what follows may depend on them
    this.waiting = []; // tokens whose text is not certain yet
  }

  push(id) {
    const name = this.tokenizer.name(id);
    if (name === "" || this.silent.has(id)) return "";
    if (this.bytes) return this.bytes.decode(bytesOf(name), { stream: true });
    this.waiting.push(id);
    if (this.fallsBack && BYTE.test(name)) return ""; // a wrong byte changes the text of the whole run of bytes
    const text = this.text([...this.context, ...this.waiting]);
    if (text.endsWith("\ufffd") && !this.fallsBack && this.waiting.length <= LONGEST) return "";
    return this.given(text);
  }

  end() {
    if (this.bytes) return this.bytes.decode();
    return this.waiting.length ? this.given(this.text([...this.context, ...this.waiting])) : "";
  }

  given(text) {
    const piece = this.context.length ? text.slice(this.text(this.context).length) : text;
    if (piece) [this.context, this.waiting] = [this.waiting, []];
    return piece;
  }

  text(ids) {
    const { library } = this.tokenizer;
    if (!this.fallsBack) return library.decode(ids);
    const steps = (library.decoder.decoders ?? [library.decoder]).filter((step) => step.config.type !== "ByteFallback");
    const names = ids.map((id) => this.tokenizer.name(id));
    return steps.reduce((tokens, step) => step.decode_chain(tokens), withoutBytes(names)).join("");
  }
}

// Tokens with each run of byte tokens as its text: one that is no UTF-8 is a sign for each byte.
function withoutBytes(names) {
  const found = [];
  for (let i = 0; i < names.length; ) {
    const bytes = [];
    while (BYTE.test(names[i] ?? "")) bytes.push(Number.parseInt(names[i++].slice(1, -1), 16));
    if (!bytes.length) found.push(names[i++]);
    else {
      try {
        found.push(new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(Uint8Array.from(bytes)));
      } catch {
        found.push("\ufffd".repeat(bytes.length));
      }
    }
  }
  return found;
}

const BYTE_OF_CHARACTER = new Map(CHARACTER_OF_BYTE.map((character, byte) => [character, byte]));

function bytesOf(name) {
  const bytes = Array.from(name, (character) => BYTE_OF_CHARACTER.get(character));
  return bytes.includes(undefined) ? new TextEncoder().encode(name) : Uint8Array.from(bytes);
}
