// Tokens of a text with their places in it, as `sae_runtime.text.tokenizer` makes them. The vocabulary's models are
// those of @huggingface/tokenizers; what comes before and after them is here, since that library gives no places.

import { BPE, Tokenizer as Library, Unigram, WordPiece } from "../../vendor/tokenizers.js";
import { normaliser } from "./normalise.js";
import { part, placed } from "./placed.js";
import { splitter } from "./split.js";

export class PageTokenizer {
  // `told` is tokenizer.json, `about` model.json's "special"; `lowers` makes texts lower case before all else.
  constructor(told, about, lowers = false) {
    this.about = about;
    this.special = new Set(about.ids);
    this.normalise = normaliser(lowers ? lowered(told.normalizer) : told.normalizer);
    this.split = splitter(told.pre_tokenizer);
    this.model = vocabulary(told.model);
    this.added = told.added_tokens ?? [];
    const seen = this.added.filter((token) => !(about.splits && token.special));
    const hidden = this.added.filter((token) => about.splits && token.special);
    this.plainTokens = finder(seen.filter((token) => !token.normalized), hidden.filter((token) => !token.normalized));
    const named = (token) => ({ ...token, content: this.normalise(placed(token.content)).text });
    const normalised = (tokens) => tokens.filter((token) => token.normalized).map(named);
    this.normalisedTokens = finder(normalised(seen), normalised(hidden));
    [this.before, this.after] = frame(told.post_processor);
    const without = { normalizer: null, pre_tokenizer: null, post_processor: null };
    this.library = new Library({ decoder: null, added_tokens: [], ...told, ...without },
      { clean_up_tokenization_spaces: false, unk_token: told.model.unk_token });
    for (const token of normalised(this.added)) this.library.model.vocab[token.id] = token.content; // its name in Rust
  }

  // The tokens of a text: [{id, from, to, special, added}], where `added` are those that frame a text.
  encode(text, { framed = true } = {}) {
    if (/\p{Cs}/u.test(text)) throw new Error("the text holds half of a character; type it again");
    const own = [];
    for (const piece of this.plainTokens(placed(text))) {
      if (piece.token) own.push({ id: piece.token.id, from: piece.from[0], to: piece.to.at(-1) });
      else {
        for (const inner of this.normalisedTokens(this.normalise(piece))) {
          if (inner.token) own.push({ id: inner.token.id, from: inner.from[0], to: inner.to.at(-1) });
          else if (inner.text) for (const word of this.split(inner)) own.push(...this.pieces(word));
        }
      }
    }
    const outer = (ids) => ids.map((id) => ({ id, from: 0, to: 0, special: true, added: true }));
    const inside = own.map((token) => ({ ...token, special: this.special.has(token.id), added: false }));
    return framed ? [...outer(this.before), ...inside, ...outer(this.after)] : inside;
  }

  // The tokens of one piece of a text.
  pieces(word) {
    const found = [];
    let at = 0;
    for (const { id, length } of this.model(word.text)) {
      const end = Math.min(at + length, word.text.length);
      const begin = Math.min(at, word.text.length - 1);
      found.push({ id, from: word.from[begin], to: end > begin ? word.to[end - 1] : word.to[begin] });
      at = end;
    }
    return found;
  }

  // The windows of a text that is longer than a limit, each with the special tokens around it.
  windows(tokens, limit) {
    if (tokens.length <= limit) return [tokens];
    const { before, own, after } = this.parts(tokens);
    const size = room(limit, before.length + after.length);
    const windows = [];
    for (let start = 0; start < own.length; start += size) {
      windows.push([...before, ...own.slice(start, start + size), ...after]);
    }
    return windows.length ? windows : [tokens];
  }

  // The tokens that are left of a text when a limit drops the others.
  limited(tokens, limit) {
    if (limit === null || tokens.length <= limit) return tokens;
    const { before, own, after } = this.parts(tokens);
    const size = room(limit, before.length + after.length);
    const kept = this.about.side === "left" ? own.slice(own.length - size) : own.slice(0, size);
    return [...before, ...kept, ...after];
  }

  parts(tokens) {
    const first = tokens.findIndex((token) => !token.added);
    if (first < 0) return { before: tokens, own: [], after: [] };
    const last = tokens.findLastIndex((token) => !token.added);
    return { before: tokens.slice(0, first), own: tokens.slice(first, last + 1), after: tokens.slice(last + 1) };
  }

  name(id) {
    return this.library.id_to_token(id) ?? "";
  }
}

// Tokens as a page shows them: the piece of the text that each is, and the gap before it. Joined, with `rest` behind
// the last one, they are the text. A token that ends where the one before it ended has the text "".
export function shown(text, tokens) {
  let done = 0;
  const pieces = tokens.map((token) => {
    if (token.added) return { text: "", gap: "" };
    let from = Math.max(token.from, done);
    const to = Math.max(token.to, from);
    const blanks = text.slice(from, to).match(/^\p{White_Space}*/u)[0].length;
    if (from + blanks < to) from += blanks;
    const piece = { text: text.slice(from, to), gap: text.slice(done, from) };
    done = to;
    return piece;
  });
  let rest = text.slice(done);
  if (rest && tokens.at(-1)?.added) {
    const last = tokens.findLastIndex((token) => !token.added) + 1;
    pieces[last].gap += rest;
    rest = "";
  }
  return { pieces, rest };
}

function room(limit, around) {
  if (limit <= around) throw new Error(`the model reads ${limit} tokens, of which special tokens take ${around}`);
  return limit - around;
}

function lowered(told) {
  const steps = told?.type === "Sequence" ? told.normalizers : told ? [told] : [];
  if (steps.some((step) => step.type === "Lowercase")) return told;
  return { type: "Sequence", normalizers: [{ type: "Lowercase" }, ...(told ? [told] : [])] };
}

// A function from a piece of text to its tokens: [{id, length}], length in units of the piece.
function vocabulary(told) {
  const isList = Array.isArray(told.vocab); // of names and scores
  const ids = new Map(isList ? told.vocab.map(([name], id) => [name, id]) : Object.entries(told.vocab));
  const unknown = told.type === "Unigram" ? told.unk_id : ids.get(told.unk_token);
  switch (told.type) {
    case "WordLevel":
      return (text) => {
        const id = ids.get(text) ?? unknown;
        return id === undefined ? [] : [{ id, length: text.length }];
      };
    case "WordPiece": {
      const model = new WordPiece(told);
      const inside = told.continuing_subword_prefix ?? "##";
      return (text) => {
        const names = model.encode([text]);
        if (names.length === 1 && !ids.has(text)) return [{ id: unknown, length: text.length }];
        return names.map((name, n) => ({ id: ids.get(name), length: name.length - (n ? inside.length : 0) }));
      };
    }
    case "BPE": {
      const model = new BPE(told);
      const bytes = told.byte_fallback ? bytesOf(ids) : () => null;
      return (text) => {
        if (told.ignore_merges && ids.has(text)) return [{ id: ids.get(text), length: text.length }];
        return known(model.bpe(text), ids, unknown, bytes, told.fuse_unk ?? false);
      };
    }
    case "Unigram": {
      const model = new Unigram(told, null);
      const bytes = told.byte_fallback ? bytesOf(ids) : () => null;
      // Unknown characters that follow each other are one unknown.
      return (text) => known(model.tokenize(text), ids, unknown, bytes, true);
    }
  }
  throw new Error(`the tokenizer has the model ${told.type}, which the page does not know`);
}

// The tokens of surfaces, which the vocabulary knows or not.
function known(surfaces, ids, unknown, bytes, fuses) {
  const found = [];
  let wasUnknown = false;
  for (const surface of surfaces) {
    const id = ids.get(surface);
    const inBytes = id === undefined ? bytes(surface) : null;
    if (id !== undefined) found.push({ id, length: surface.length });
    else if (inBytes) {
      inBytes.forEach((byte, n) => found.push({ id: byte, length: n ? 0 : surface.length }));
    } else if (wasUnknown && fuses) found.at(-1).length += surface.length;
    else if (unknown !== undefined && unknown !== null) found.push({ id: unknown, length: surface.length });
    wasUnknown = id === undefined && !inBytes;
  }
  return found;
}

function bytesOf(ids) {
  const encoder = new TextEncoder();
  const name = (byte) => `<0x${byte.toString(16).toUpperCase().padStart(2, "0")}>`;
  return (text) => {
    const found = [...encoder.encode(text)].map((byte) => ids.get(name(byte)));
    return found.includes(undefined) ? null : found;
  };
}

// A function that cuts a text where the names of added tokens stand in it. Hidden ones are found and left as text.
function finder(tokens, hidden) {
  const byContent = new Map(tokens.map((token) => [token.content, token]));
  const contents = [...new Set([...tokens, ...hidden].map((token) => token.content))].filter((content) => content);
  if (!contents.length) return (whole) => [whole];
  contents.sort((a, b) => b.length - a.length);
  const pattern = new RegExp(contents.map((content) => content.replace(/[.*+?^${}()|[\]\\]/g, "\\$&")).join("|"), "g");
  const word = "[\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\\p{Join_Control}]";
  const [endsInWord, beginsWithWord] = [new RegExp(`${word}$`, "u"), new RegExp(`^${word}`, "u")];
  return (whole) => {
    const pieces = [];
    let done = 0;
    for (const match of whole.text.matchAll(pattern)) {
      const token = byContent.get(match[0]);
      if (!token) continue;
      let [begin, end] = [match.index, match.index + match[0].length];
      const [left, right] = [whole.text.slice(0, begin), whole.text.slice(end)];
      if (token.single_word && (endsInWord.test(left) || beginsWithWord.test(right))) continue;
      if (token.lstrip) begin = Math.max(begin - left.match(/\p{White_Space}*$/u)[0].length, done);
      if (token.rstrip) end += right.match(/^\p{White_Space}*/u)[0].length;
      if (done < begin) pieces.push(part(whole, done, begin));
      pieces.push({ ...part(whole, begin, end), token });
      done = end;
    }
    if (done < whole.text.length) pieces.push(part(whole, done, whole.text.length));
    return pieces;
  };
}

// The ids before and after a text.
function frame(told) {
  switch (told?.type) {
    case undefined:
    case "ByteLevel":
      return [[], []];
    case "BertProcessing":
    case "RobertaProcessing":
      return [[told.cls[1]], [told.sep[1]]];
    case "TemplateProcessing": {
      const at = told.single.findIndex((item) => "Sequence" in item);
      const ids = (items) => items.flatMap((item) => told.special_tokens[item.SpecialToken.id].ids);
      return [ids(told.single.slice(0, at)), ids(told.single.slice(at + 1))];
    }
    case "Sequence":
      return told.processors
        .map(frame)
        .reduce(([before, after], [first, last]) => [[...first, ...before], [...after, ...last]], [[], []]);
  }
  throw new Error(`the tokenizer has the post-processor ${told.type}, which the page does not know`);
}
