// Texts with their active tokens shaded. The value of a token shows where the pointer, a finger or the keyboard is on it.

import { make, number, plain } from "./shared/elements.js";
import { visible } from "./words.js";

const BEFORE = 90, AFTER = 120; // characters beside the peak that a short text shows
const LONGEST = 240; // characters of a token that a short text shows; the one token of a document is all of its beginning
const PALEST = 0.14; // share of the full shade that the smallest value has, so that it shows

// The paragraph of a context. parts: plain strings and [text, value]; peak: number of the part with the largest value;
// max: the value with the full shade; whole: all of the text, else what stands around the peak.
export function textOf(parts, { peak = null, max = null, whole = false } = {}) {
  const middle = Array.isArray(parts[peak]) ? peak : strongest(parts);
  const most = max ?? parts[middle]?.[1] ?? 1;
  const taken = whole ? { parts: parts.map((part, place) => ({ part, place })), cutBefore: false, cutAfter: false } : around(parts, middle);
  const spans = taken.parts.flatMap(({ part, place }) => typeof part === "string" ? [plain(part)] : shaded(part, most, place === middle));
  return make("p", { className: whole ? "text whole" : "text", dir: "auto" },
    ...(taken.cutBefore ? ["… "] : []), ...spans, ...(taken.cutAfter ? [" …"] : []));
}

function strongest(parts) {
  let best = -1;
  parts.forEach((part, place) => { if (Array.isArray(part) && (best < 0 || part[1] > parts[best][1])) best = place; });
  return best;
}

// White space before a token stays outside of its shade.
function shaded([text, value], most, isPeak) {
  const [, before, token] = /^(\s*)([^]*)$/.exec(text);
  const shown = make("span", {
    className: !isPeak ? "hot" : text.length > LONGEST / 2 ? "hot peak long" : "hot peak", tabIndex: isPeak ? 0 : -1,
    attributes: { "data-value": String(value), "data-most": String(most), "aria-describedby": "bubble" },
  }, token === "" ? visible(text) : plain(token));
  const part = most > 0 ? Math.min(1, Math.max(0, value / most)) : 0;
  shown.style.setProperty("--share", (value > 0 ? PALEST + (1 - PALEST) * part : 0).toFixed(3));
  return token === "" ? [shown] : [before, shown];
}

// The parts around the peak, cut between words.
function around(parts, middle) {
  const before = [], after = [];
  let cutBefore = false, cutAfter = false, left = BEFORE;
  for (let place = middle - 1; place >= 0; place--) {
    if (left <= 0) { cutBefore = true; break; }
    const part = parts[place], text = typeof part === "string" ? part : part[0];
    if (text.length <= left || typeof part !== "string") before.unshift({ part, place });
    else {
      const kept = text.slice(-left), word = kept.search(/\s\S/);
      before.unshift({ part: word >= 0 ? kept.slice(word + 1) : whole(kept), place });
      cutBefore = true;
    }
    left -= text.length;
  }
  left = AFTER;
  for (let place = Math.max(0, middle + 1); place < parts.length; place++) {
    if (left <= 0) { cutAfter = true; break; }
    const part = parts[place], text = typeof part === "string" ? part : part[0];
    if (text.length <= left || typeof part !== "string") after.push({ part, place });
    else {
      const kept = text.slice(0, left), word = kept.lastIndexOf(" ");
      after.push({ part: word > 0 ? kept.slice(0, word) : whole(kept), place });
      cutAfter = true;
    }
    left -= text.length;
  }
  const [text, value] = parts[middle] ?? [""], isLong = text.length > LONGEST;
  const peak = middle < 0 ? [] : [{ part: isLong ? [`${whole(text.slice(0, LONGEST))} …`, value] : parts[middle], place: middle }];
  return { parts: [...before, ...peak, ...after], cutBefore, cutAfter };
}

// A cut may not part the two halves of a sign.
const whole = (text) => text.replace(/^[\udc00-\udfff]|[\ud800-\udbff]$/g, "");

// --- The bubble with the value ---

let bubble = null;

// Values show for the tokens inside a place. Tab goes from text to text, arrows from token to token.
export function listenToTokens(place) {
  const shown = (event) => event.target.closest?.(".hot");
  place.addEventListener("pointerover", (event) => { const token = shown(event); if (token) say(token); });
  place.addEventListener("pointerout", (event) => { if (shown(event) && event.pointerType !== "touch") hush(); });
  place.addEventListener("focusin", (event) => { const token = shown(event); if (token) say(token); });
  place.addEventListener("focusout", hush);
  place.addEventListener("click", (event) => { const token = shown(event); if (token) say(token); else hush(); });
  place.addEventListener("keydown", (event) => {
    const token = shown(event);
    if (!token) return;
    if (event.key === "Escape") hush();
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!by) return;
    event.preventDefault();
    const others = [...token.closest(".text").querySelectorAll(".hot")];
    others[others.indexOf(token) + by]?.focus();
  });
  addEventListener("scroll", hush, { passive: true });
  return () => { hush(); removeEventListener("scroll", hush); };
}

function say(token) {
  if (!bubble?.isConnected) bubble = document.body.appendChild(make("div", { id: "bubble", className: "bubble", attributes: { role: "tooltip" } }));
  const value = Number(token.dataset.value), most = Number(token.dataset.most);
  bubble.replaceChildren(make("strong", {}, number(value)), most > 0 ? ` · ${Math.round(100 * value / most)} % of ${number(most)}` : "");
  bubble.hidden = false;
  const { left, top, bottom, width } = token.getClientRects()[0] ?? token.getBoundingClientRect();
  const middle = left + width / 2 - bubble.offsetWidth / 2;
  bubble.style.setProperty("left", `${Math.max(4, Math.min(middle, document.documentElement.clientWidth - bubble.offsetWidth - 4))}px`);
  const above = top - bubble.offsetHeight - 5;
  bubble.style.setProperty("top", `${above > 2 ? above : bottom + 5}px`);
}

function hush() {
  if (bubble) bubble.hidden = true;
}
