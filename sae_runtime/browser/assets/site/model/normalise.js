// The normalisers of tokenizer.json, as the library in Rust applies them, with the place of each character kept. The
// JavaScript library has them too, but gives no places, and differs: it leaves characters beyond U+FFFF unseen, takes
// JavaScript's white space, and writes a Greek sigma at the end of a word in its other form.

import { SplitPreTokenizer } from "../../vendor/tokenizers.js";
import { charsmap } from "./charsmap.js";
import { isYoung, WAS_MARK } from "./old_unicode.js";
import { Builder, mapped } from "./placed.js";

export function normaliser(told) {
  if (!told) return (whole) => whole;
  const make = KINDS[told.type];
  if (!make) throw new Error(`the tokenizer has the normaliser ${told.type}, which the page does not know`);
  return make(told);
}

const KINDS = {
  BertNormalizer: (told) => (whole) => bert(whole, told),
  Lowercase: () => (whole) => mapped(whole, lower),
  NFC: () => (whole) => composed(whole, "NFC"),
  NFD: () => (whole) => composed(whole, "NFD"),
  NFKC: () => (whole) => composed(whole, "NFKC"),
  NFKD: () => (whole) => composed(whole, "NFKD"),
  StripAccents: () => (whole) => mapped(whole, (c) => (/\p{M}/u.test(c) ? "" : c)),
  Strip: (told) => (whole) => stripped(whole, told),
  Replace: (told) => replacing(told),
  Prepend: (told) => (whole) => (whole.text ? prepended(whole, told.prepend) : whole),
  Sequence: (told) => {
    const steps = told.normalizers.map(normaliser);
    return (whole) => steps.reduce((text, step) => step(text), whole);
  },
  Precompiled: (told) => charsmap(told.precompiled_charsmap),
};

const lower = (character) => character.toLowerCase(); // of one character alone, so no letter looks at its neighbours

function bert(whole, told) {
  let text = whole;
  if (told.clean_text) text = mapped(text, cleaned);
  if (told.handle_chinese_chars) text = mapped(text, (c) => (isChinese(c.codePointAt(0)) ? ` ${c} ` : c));
  if (told.strip_accents ?? told.lowercase) {
    text = mapped(composed(text, "NFD"), (c) => (isAccent(c) ? "" : c));
  }
  return told.lowercase ? mapped(text, lower) : text;
}

const isAccent = (character) => (/\p{Mn}/u.test(character) && !isYoung(character)) || WAS_MARK.includes(character);

function cleaned(character) {
  if (character === "\t" || character === "\n" || character === "\r") return " ";
  if (character === "\0" || character === "\ufffd") return "";
  if (/[\p{Cc}\p{Cf}\p{Co}]/u.test(character) && !isYoung(character)) return "";
  return /\p{White_Space}/u.test(character) ? " " : character;
}

const CHINESE = [
  [0x4e00, 0x9fff], [0x3400, 0x4dbf], [0x20000, 0x2a6df], [0x2a700, 0x2b73f], [0x2b740, 0x2b81f], [0x2b920, 0x2ceaf],
  [0xf900, 0xfaff], [0x2f800, 0x2fa1f],
];
const isChinese = (point) => CHINESE.some(([first, last]) => first <= point && point <= last);

const composed = (whole, form) => byRuns(whole, (text) => text.normalize(form));

// Change a text run by run. A run is a character with the marks behind it, which a Unicode form puts together or apart;
// the jamo of a Korean syllable are one too.
const RUNS = /[\u1100-\u115f\ua960-\ua97c]+[\u1160-\u11ff\ud7b0-\ud7fb]*\p{M}*|[\s\S][\u1160-\u11ff]*\p{M}*/gu;

function byRuns(whole, change) {
  const builder = new Builder();
  for (const run of whole.text.matchAll(RUNS)) {
    const end = run.index + run[0].length;
    const made = change(run[0]);
    if (made === run[0]) builder.addPart(whole, run.index, end);
    else builder.add(made, whole.from[run.index], Math.max(...whole.to.slice(run.index, end)));
  }
  const found = builder.made();
  const wanted = change(whole.text);
  if (found.text === wanted) return found;
  // The runs hang together after all: each character of the result may be of any place.
  const all = new Builder();
  all.add(wanted, whole.from[0] ?? 0, whole.to.at(-1) ?? 0);
  return all.made();
}

function stripped(whole, told) {
  const text = whole.text;
  const left = told.strip_left ? text.match(/^\p{White_Space}*/u)[0].length : 0;
  const right = told.strip_right ? text.slice(left).match(/\p{White_Space}*$/u)[0].length : 0;
  const builder = new Builder();
  builder.addPart(whole, left, text.length - right);
  return builder.made();
}

function replacing(told) {
  const pattern = new SplitPreTokenizer({ pattern: told.pattern, invert: true }).pattern;
  return (whole) => {
    const builder = new Builder();
    let done = 0;
    for (const match of whole.text.matchAll(pattern)) {
      const end = match.index + match[0].length;
      builder.addPart(whole, done, match.index);
      if (end > match.index) builder.add(told.content, whole.from[match.index], whole.to[end - 1]);
      done = end;
    }
    builder.addPart(whole, done, whole.text.length);
    return builder.made();
  };
}

export function prepended(whole, text) {
  const builder = new Builder();
  builder.add(text, whole.from[0], whole.from[0]); // it takes no room in the original text
  builder.addPart(whole, 0, whole.text.length);
  return builder.made();
}
