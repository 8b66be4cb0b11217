// Search: features by label, token or number while somebody types, features like another one, and what fires on a text.

import { countNames, getFeature, getName, getNames, shardOf } from "./data.js";
import { firing } from "./firing.js";
import { best, breathe, matchKey, scan, wordsOf } from "./matching.js";
import { address, keep, numberOf } from "./route.js";
import { table } from "./results.js";
import { make, number, plain } from "./shared/elements.js";
import { counted, linkTo, nameOf, share } from "./words.js";

const PAGE = 50; // results that show at first, and with each "show more"
const REDRAW = 200; // milliseconds between two lists while shards come
const ORDERS = { match: "best match", max: "largest activation", density: "density", number: "number" };
const DENSITIES = { "": "any density", "0.01-": "above 1 %", "0.001-0.01": "0.1 % to 1 %", "0.0001-0.001": "0.01 % to 0.1 %", "-0.0001": "below 0.01 %" };

let current = null; // {sae, parameters, list, status, ...} of the page that is shown
let turn = 0; // number of the last search; an older one ends

export async function show(place, site, sae, parameters) {
  const list = make("div", { className: "results" }), status = make("p", { className: "note", attributes: { role: "status" } });
  const forms = make("div", {});
  current = { site, sae, parameters, list, status, forms, count: PAGE };
  place.append(make("h1", { attributes: { "data-title": "Search" } }, "Features"), forms, status, list);
  forms.append(tabs(), ...controls());
  place.addEventListener("keydown", move);
  fill();
  return () => { turn++; current.firing?.close(); current = null; };
}

// Another query of the same page: the frame stays, the list changes.
export function change(parameters) {
  const kind = kindOf(parameters);
  const asks = (one) => wordsOf(one.get("q") ?? "").length > 0;
  const same = kind === "words" && kind === kindOf(current.parameters) && asks(parameters) === asks(current.parameters);
  current.parameters = parameters;
  current.count = PAGE;
  if (!same) current.forms.replaceChildren(tabs(), ...controls());
  fill();
  return true;
}

// Enter in the search box goes to the first result, once the search has ended.
export function focusFirst() {
  current.focusFirst = true;
  if (current.done) focusResult();
}

function focusResult() {
  current.focusFirst = false;
  current.list.querySelector("a.feature")?.focus();
}

const kindOf = (parameters) => parameters.has("text") ? "text" : parameters.has("like") ? "like" : "words";
const fill = () => ({ words: fillWords, like: fillLike, text: fillText })[kindOf(current.parameters)]();

// Results by arrow keys.
function move(event) {
  const by = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  const links = [...current.list.querySelectorAll("a.feature")], place = links.indexOf(event.target);
  if (!by || place < 0) return;
  event.preventDefault();
  (place + by < 0 ? document.getElementById("query") : links[place + by])?.focus();
}

// --- What is asked ---

function tabs() {
  const { site, sae, parameters } = current, kind = kindOf(parameters);
  const link = (name, text, more) => make("a", { href: address(sae, "search", more), attributes: name === kind ? { "aria-current": "page" } : {} }, text);
  const tries = site.model || site.served.api;
  return make("nav", { className: "row kinds", attributes: { "aria-label": "Ways to search" } }, link("words", "By label, token or number", {}),
    kind === "like" ? link("like", `Like ${parameters.get("like")}`, { like: parameters.get("like") }) : null,
    tries || kind === "text" ? make("a", { href: `${address(sae, "search")}?text=`, attributes: kind === "text" ? { "aria-current": "page" } : {} }, "By what fires on a text") : null);
}

function controls() {
  const { parameters } = current, kind = kindOf(parameters);
  if (kind === "like") return [];
  if (kind === "text") return [textForm()];
  const choice = (name, options, label) => {
    const select = make("select", { on: { change: () => put(name, select.value) } }, ...Object.entries(options).map(([value, text]) =>
      make("option", { value, selected: (parameters.get(name) ?? Object.keys(options)[0]) === value }, text)));
    return make("label", {}, `${label} `, select);
  };
  const { match, ...unmatched } = ORDERS;
  const orders = wordsOf(parameters.get("q") ?? "").length ? { match, ...unmatched } : unmatched;
  const dead = make("input", { type: "checkbox", checked: parameters.get("dead") === "1", on: { change: () => put("dead", dead.checked ? "1" : "") } });
  return [make("div", { className: "row filters" }, choice("order", orders, "Sort by"), choice("density", DENSITIES, "Density"), make("label", {}, dead, " dead ones too"))];
}

function put(name, value) {
  const parameters = new URLSearchParams(current.parameters);
  if (value) parameters.set(name, value);
  else parameters.delete(name);
  keep(address(current.sae, "search", Object.fromEntries(parameters)));
  current.parameters = parameters;
  current.count = PAGE;
  fill();
}

// --- By words ---

async function fillWords() {
  const mine = ++turn, { sae, parameters, status } = current, page = Object.assign(current, { done: false }), query = parameters.get("q") ?? "";
  const isStale = () => mine !== turn || current !== page;
  const words = wordsOf(query), exact = numberOf(query), filter = filterOf(parameters);
  const numbers = [], keys = [], here = [];
  const key = keyOf(parameters.get("order") ?? "match", words.length > 0);
  let drawn = -Infinity, shards = 0, read = 0;
  const draw = () => {
    drawn = performance.now();
    const shown = best(numbers, keys, page.count).map((feature) => rowOf(here, feature));
    showResults(sae, shown, numbers.length, words, () => { page.count += PAGE; draw(); });
  };
  try {
    shards = await countNames(sae);
    const coming = Array.from({ length: Math.min(shards, 3) }, (_, shard) => getNames(sae, shard));
    coming.forEach((one) => one.catch(() => {})); // told below, when its turn comes
    for (; read < shards; read++) {
      if (isStale()) return;
      if (shards > 1) status.textContent = `${number(numbers.length)} found, ${number(read)} of ${number(shards)} parts read …`;
      const shard = await coming[read];
      here.push(shard);
      if (read + 3 < shards) { coming.push(getNames(sae, read + 3)); coming[read + 3].catch(() => {}); }
      await scan(shard, words, (feature, quality) => {
        const place = feature - shard.first, density = shard.density[place], max = shard.max[place];
        if (!filter(density)) return;
        if (feature === exact) return;
        numbers.push(feature);
        keys.push(key(quality, density, max, feature));
      }, isStale);
      if (isStale()) return;
      if (exact !== null && exact >= shard.first && exact < shard.first + shard.density.length) {
        numbers.push(exact);
        keys.push(Infinity);
      }
      if (performance.now() - drawn > REDRAW) { draw(); await breathe(); }
    }
    draw();
    status.textContent = told(numbers.length, query, parameters);
    page.done = true;
    if (page.focusFirst) focusResult();
  } catch (error) {
    if (!isStale()) tell(error);
  }
}

function rowOf(shards, feature) {
  const { first, label, tokens, density, max } = shards[shardOf(shards.map((shard) => shard.first), feature)], place = feature - first;
  return { feature, label: label[place], tokens: tokens[place] ?? [], density: density[place], max: max[place] };
}

function tell(error) {
  current.status.replaceChildren();
  current.list.replaceChildren(make("p", { className: "error", attributes: { role: "alert" } }, plain(error.message)));
}

function told(count, query, parameters) {
  const asked = query.trim() ? ` for “${plain(query.trim())}”` : "";
  if (count) return `${counted(count, "feature")}${asked}.`;
  const others = [asked && "fewer letters", parameters.get("density") && "any density", parameters.get("dead") !== "1" && "dead ones too"].filter(Boolean);
  return `No feature${asked}.${asked ? " Labels and top tokens are searched." : ""}${others.length ? ` Try ${others.join(", or ")}.` : ""}`;
}

function filterOf(parameters) {
  const [low = "", high = ""] = (parameters.get("density") ?? "").split("-"), dead = parameters.get("dead") === "1";
  const least = low ? Number(low) : 0, most = high ? Number(high) : Infinity;
  return (density) => (dead || density > 0) && (density >= least && density < most);
}

// A number that grows with what is to come first.
function keyOf(order, hasWords) {
  if (order === "number") return (quality, density, max, feature) => -feature;
  if (order === "density") return (quality, density) => density;
  if (order === "max" || !hasWords) return (quality, density, max) => max;
  return (quality, density, max) => matchKey(quality, max);
}

// --- Like another feature ---

async function fillLike() {
  const mine = ++turn, { sae, parameters, status, list } = current, feature = Number(parameters.get("like"));
  try {
    if (!(feature >= 0 && feature < sae.d_sae)) throw new Error(`${plain(sae.name)} has features 0 to ${sae.d_sae - 1}; name one of them.`);
    const about = await getFeature(sae, feature);
    if (mine !== turn) return;
    const near = new Map(about.neighbours ?? []), together = new Map(about.together ?? []);
    const { link } = linkTo(sae, feature, nameOf(about));
    status.replaceChildren("Features like ", link, ", by the cosine of their decoder rows and by how often they are active on the same tokens (phi).");
    const all = [...new Set([...near.keys(), ...together.keys()])].sort((a, b) => Math.max(near.get(b) ?? 0, together.get(b) ?? 0) - Math.max(near.get(a) ?? 0, together.get(a) ?? 0));
    const rows = await Promise.all(all.map(async (one) => ({ feature: one, ...await getName(sae, one) })));
    if (mine !== turn) return;
    if (!rows.length) { list.replaceChildren(make("p", { className: "note" }, "The store has no neighbours of this feature and none that is active with it.")); return; }
    list.replaceChildren(table(sae, rows, ["cosine", "active together"], (row) => [number(near.get(row.feature)), number(together.get(row.feature))], []));
  } catch (error) {
    if (mine === turn) tell(error);
  }
}

// --- By what fires on a text ---

function textForm() {
  const { site, sae, status, list } = current;
  current.firing?.close();
  current.firing = firing({ site, sae, text: current.parameters.get("text") ?? "", status, list, asked: (text) => {
    current.parameters = new URLSearchParams({ text });
    keep(`${address(sae, "search")}?${current.parameters}`);
    fillText();
  } });
  return current.firing.element;
}

function fillText() {
  turn++;
  current.firing.read(current.parameters.get("text") ?? "");
}

// --- Rows ---

function showResults(sae, rows, total, words, showMore) {
  if (!rows.length) { current.list.replaceChildren(); return; }
  const more = total > rows.length ? make("button", { type: "button", on: { click: showMore } }, `Show more of ${number(total)}`) : null;
  current.list.replaceChildren(table(sae, rows, ["density", "largest"], (row) => [share(row.density), number(row.max)], words), ...(more ? [more] : []));
}
