// A text that was changed, and where each of its UTF-16 units came from: unit i is made of the original from[i] to
// to[i]. Tokens are found in the changed text and shown in the original one.

export function placed(text, start = 0) {
  const from = new Array(text.length);
  const to = new Array(text.length);
  for (let i = 0; i < text.length; ) {
    const length = text.codePointAt(i) > 0xffff ? 2 : 1; // both units of a character are the whole character
    for (let unit = 0; unit < length; unit++) {
      from[i + unit] = start + i;
      to[i + unit] = start + i + length;
    }
    i += length;
  }
  return { text, from, to };
}

export const part = (whole, begin, end) => ({
  text: whole.text.slice(begin, end),
  from: whole.from.slice(begin, end),
  to: whole.to.slice(begin, end),
});

// The same text with other characters: `change(character)` gives what takes the place of each, "" for nothing.
export function mapped(whole, change) {
  const builder = new Builder();
  for (let i = 0; i < whole.text.length; ) {
    const character = String.fromCodePoint(whole.text.codePointAt(i));
    builder.add(change(character), whole.from[i], whole.to[i]);
    i += character.length;
  }
  return builder.made();
}

// Puts a text together of pieces, each with its place in the original text.
export class Builder {
  constructor() {
    this.pieces = [];
    this.from = [];
    this.to = [];
  }

  add(text, from, to) {
    if (!text) return;
    this.pieces.push(text);
    for (let i = 0; i < text.length; i++) {
      this.from.push(from);
      this.to.push(to);
    }
  }

  addPart(whole, begin, end) {
    if (begin >= end) return;
    this.pieces.push(whole.text.slice(begin, end));
    for (let i = begin; i < end; i++) {
      this.from.push(whole.from[i]);
      this.to.push(whole.to[i]);
    }
  }

  made() {
    return { text: this.pieces.join(""), from: this.from, to: this.to };
  }
}
