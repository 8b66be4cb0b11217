// How well features match the words of a query: numbers first, labels before top tokens, whole words before parts.

const BUDGET = 12; // milliseconds of work before the page may draw again

// Letters without case and accents.
export const folded = (text) => text.normalize("NFKD").replace(/\p{M}+/gu, "").toLowerCase();

export const wordsOf = (query) => folded(query).split(/\s+/).filter(Boolean);

const LABEL_WORD = 8, LABEL_PART = 4, TOKEN_WORD = 2, TOKEN_PART = 1;

// The quality of one word in a label and in top tokens (both folded): 0 is no match.
function quality(word, label, tokens) {
  return (label === null ? 0 : inText(word, label, LABEL_WORD, LABEL_PART)) || inText(word, tokens, TOKEN_WORD, TOKEN_PART);
}

function inText(word, text, whole, part) {
  let place = text.indexOf(word);
  if (place < 0) return 0;
  for (; place >= 0; place = text.indexOf(word, place + 1)) {
    if (isEdge(text, place - 1, word[0]) && isEdge(text, place + word.length, word[word.length - 1])) return whole;
  }
  return part;
}

// A word ends where no letter or digit goes on; next to a sign that is none, everywhere.
function isEdge(text, place, sign) {
  return place < 0 || place >= text.length || !LETTER.test(sign) || !LETTER.test(text[place]);
}

const LETTER = /[\p{L}\p{N}_]/u;

// Look through a shard of names. found(feature, quality) is called for each feature that has all words; it lets the page
// draw now and then, and ends early when isStale() is true.
export async function scan(shard, words, found, isStale) {
  const texts = foldedOf(shard);
  let began = performance.now();
  for (let place = 0; place < shard.density.length; place++) {
    if (place % 64 === 0 && performance.now() - began > BUDGET) {
      await breathe();
      if (isStale()) return;
      began = performance.now();
    }
    texts[place] ??= { label: shard.label[place] ? folded(shard.label[place]) : null, tokens: folded((shard.tokens[place] ?? []).join("\n")) };
    const { label, tokens } = texts[place];
    let sum = 0;
    for (const word of words) {
      const one = quality(word, label, tokens);
      if (!one) { sum = -1; break; }
      sum += one;
    }
    if (sum >= 0) found(shard.first + place, words.length ? sum / words.length : 0);
  }
}

const kept = new WeakMap(); // a shard -> its folded texts, so that the next key is quick

function foldedOf(shard) {
  if (!kept.has(shard)) kept.set(shard, new Array(shard.density.length));
  return kept.get(shard);
}

// Let the browser draw and hear keys.
export function breathe() {
  return new Promise((resolve) => { const { port1, port2 } = new MessageChannel(); port1.onmessage = () => { port1.close(); resolve(); }; port2.postMessage(0); });
}

// A number that grows with the quality of a match, and among equal ones with the feature's largest activation.
export const matchKey = (quality, max) => quality * 1e6 + Math.min(max, 1e5);

// The numbers of the `count` largest keys, falling. keys and numbers are lists of the same length.
export function best(numbers, keys, count) {
  const sorted = Float64Array.from(keys).sort(); // a list of numbers sorts many times faster than one of pairs
  const least = sorted[Math.max(0, sorted.length - count)];
  const taken = [];
  for (let i = 0; i < keys.length; i++) if (keys[i] >= least) taken.push(i);
  return taken.sort((a, b) => keys[b] - keys[a] || numbers[a] - numbers[b]).slice(0, count).map((i) => numbers[i]);
}
