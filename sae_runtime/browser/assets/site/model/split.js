// The pre-tokenisers of tokenizer.json, which cut a text into the pieces that the vocabulary's model takes one by one,
// as the library in Rust cuts it. The JavaScript library's give no places and know ASCII digits alone, for one.

import { SplitPreTokenizer } from "../../vendor/tokenizers.js";
import { WAS_PUNCTUATION, YOUNG } from "./old_unicode.js";
import { Builder, part } from "./placed.js";
import { prepended } from "./normalise.js";

// A function from a placed text to its pieces.
export function splitter(told) {
  if (!told) return (whole) => [whole];
  const make = KINDS[told.type];
  if (!make) throw new Error(`the tokenizer has the pre-tokeniser ${told.type}, which the page does not know`);
  return make(told);
}

const PUNCTUATION = new RegExp(`[${WAS_PUNCTUATION}]|(?![${YOUNG}])[\\p{P}!-/:-@\\[-\`\\{-~]`, "gu");
const WORD = "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\\p{Join_Control}";
const WORDS = new RegExp(`[${WORD}]+|[^${WORD}\\p{White_Space}]+`, "gu");
const BLANKS = /\p{White_Space}/gu;
const NUMBERS = /\p{N}/gu;
// GPT-2's pattern, with the white space of Unicode.
const GPT2 = new RegExp(
  "'(?:[sdmt]|ll|ve|re)| ?\\p{L}+| ?\\p{N}+| ?[^\\p{White_Space}\\p{L}\\p{N}]+|" +
    "\\p{White_Space}+(?!\\P{White_Space})|\\p{White_Space}+",
  "gu",
);

const KINDS = {
  BertPreTokenizer: () => (whole) => cut(whole, BLANKS, "Removed").flatMap((one) => cut(one, PUNCTUATION, "Isolated")),
  Whitespace: () => (whole) => cut(whole, WORDS, "Removed", true),
  WhitespaceSplit: () => (whole) => cut(whole, BLANKS, "Removed"),
  Punctuation: (told) => (whole) => cut(whole, PUNCTUATION, told.behavior ?? "Isolated"),
  Digits: (told) => (whole) => cut(whole, NUMBERS, told.individual_digits ? "Isolated" : "Contiguous"),
  Split: (told) => {
    const pattern = new SplitPreTokenizer({ pattern: told.pattern, invert: true }).pattern;
    return (whole) => cut(whole, pattern, told.behavior, told.invert);
  },
  Metaspace: (told) => (whole) => metaspace(whole, told),
  ByteLevel: (told) => (whole) => byteLevel(whole, told),
  Sequence: (told) => {
    const steps = told.pretokenizers.map(splitter);
    return (whole) => steps.reduce((pieces, step) => pieces.flatMap(step), [whole]);
  },
};

// Cut a text at the matches of a pattern. `behavior` says what becomes of the matches, in tokenizers' words; inverted,
// the parts between the matches are taken for the matches.
function cut(whole, pattern, behavior, invert = false) {
  const spans = [];
  let done = 0;
  for (const match of whole.text.matchAll(pattern)) {
    const end = match.index + match[0].length;
    if (done < match.index) spans.push({ begin: done, end: match.index, is: invert });
    if (end > match.index) spans.push({ begin: match.index, end, is: !invert });
    done = Math.max(done, end);
  }
  if (done < whole.text.length) spans.push({ begin: done, end: whole.text.length, is: invert });
  return arranged(spans, behavior).map(({ begin, end }) => part(whole, begin, end));
}

function arranged(spans, behavior) {
  const join = (first, second) => ({ ...first, end: second.end });
  switch (behavior) {
    case "Removed":
      return spans.filter((span) => !span.is);
    case "Isolated":
      return spans;
    case "Contiguous":
      return spans.reduce((kept, span) => {
        if (kept.length && kept.at(-1).is === span.is) kept[kept.length - 1] = join(kept.at(-1), span);
        else kept.push(span);
        return kept;
      }, []);
    case "MergedWithPrevious": {
      const kept = [];
      let was = false;
      for (const span of spans) {
        if (span.is && !was && kept.length) kept[kept.length - 1] = join(kept.at(-1), span);
        else kept.push(span);
        was = span.is;
      }
      return kept;
    }
    case "MergedWithNext": {
      const kept = [];
      let was = false;
      for (const span of [...spans].reverse()) {
        if (span.is && !was && kept.length) kept[kept.length - 1] = { ...kept.at(-1), begin: span.begin };
        else kept.push(span);
        was = span.is;
      }
      return kept.reverse();
    }
  }
  throw new Error(`the tokenizer cuts with the behavior ${behavior}, which the page does not know`);
}

function metaspace(whole, told) {
  const mark = told.replacement ?? "\u2581";
  const scheme = told.prepend_scheme ?? (told.add_prefix_space === false ? "never" : "always");
  let text = { ...whole, text: whole.text.replaceAll(" ", mark) };
  const isFirst = scheme === "always" || (scheme === "first" && whole.from[0] === 0);
  if (isFirst && text.text && !text.text.startsWith(mark)) text = prepended(text, mark);
  if (told.split === false) return [text];
  return cut(text, new RegExp(mark.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"), "gu"), "MergedWithNext");
}

function byteLevel(whole, told) {
  const text = told.add_prefix_space && whole.text && !whole.text.startsWith(" ") ? prepended(whole, " ") : whole;
  const pieces = told.use_regex === false ? [text] : cut(text, GPT2, "Isolated");
  return pieces.map(inBytes);
}

// The characters that stand for bytes: a printable one for itself, the others for the rest in their order.
export const CHARACTER_OF_BYTE = (() => {
  const isPlain = (byte) => (33 <= byte && byte <= 126) || (161 <= byte && byte <= 172) || 174 <= byte;
  let next = 256;
  return Array.from({ length: 256 }, (_, byte) => String.fromCharCode(isPlain(byte) ? byte : next++));
})();

const encoder = new TextEncoder();

function inBytes(piece) {
  const builder = new Builder();
  for (let i = 0; i < piece.text.length; ) {
    const character = String.fromCodePoint(piece.text.codePointAt(i));
    for (const byte of encoder.encode(character)) builder.add(CHARACTER_OF_BYTE[byte], piece.from[i], piece.to[i]);
    i += character.length;
  }
  return builder.made();
}
