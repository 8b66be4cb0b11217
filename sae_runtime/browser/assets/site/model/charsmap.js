// SentencePiece's table of characters, "precompiled" in tokenizer.json: a trie of bytes as a double array, and the
// texts that take the place of what it finds, each with a zero behind it. Read as the library in Rust reads it; the
// JavaScript library guesses what most tables say.

import { Builder } from "./placed.js";

const LONGEST = 6; // bytes from which on a character with its marks is looked up part by part
const encoder = new TextEncoder();

// A function that gives a placed text by the table, which is base64.
export function charsmap(base64) {
  const bytes = Uint8Array.from(atob(base64 ?? ""), (character) => character.charCodeAt(0));
  if (bytes.length < 4) return (whole) => whole;
  const view = new DataView(bytes.buffer);
  const size = view.getUint32(0, true);
  const units = Array.from({ length: size >> 2 }, (_, i) => view.getUint32(4 + 4 * i, true));
  const texts = bytes.subarray(4 + size);
  const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
  const graphemes = new Intl.Segmenter("en", { granularity: "grapheme" });

  // What takes the place of a part of a text, by the shortest beginning that the table knows; null: nothing does.
  const instead = (part) => {
    const begin = shortest(units, part);
    return begin === null ? null : decoder.decode(texts.subarray(begin, texts.indexOf(0, begin)));
  };
  return (whole) => {
    const builder = new Builder();
    for (const { segment, index } of graphemes.segment(whole.text)) {
      const taken = encoder.encode(segment).length < LONGEST ? instead(encoder.encode(segment)) : null;
      if (taken !== null) {
        builder.add(taken, whole.from[index], whole.to[index + segment.length - 1]);
        continue;
      }
      let place = index;
      for (const character of segment) {
        builder.add(instead(encoder.encode(character)) ?? character, whole.from[place], whole.to[place]);
        place += character.length;
      }
    }
    return builder.made();
  };
}

const offset = (unit) => (unit >>> 10) << ((unit & 0x200) >>> 6);
const label = (unit) => (unit & 0x800000ff) >>> 0;

function shortest(units, key) {
  let node = offset(units[0]);
  for (const byte of key) {
    if (byte === 0) return null;
    node ^= byte;
    const unit = units[node];
    if (unit === undefined || label(unit) !== byte) return null;
    node ^= offset(unit);
    if ((unit >>> 8) & 1) return units[node] & 0x7fffffff;
  }
  return null;
}
