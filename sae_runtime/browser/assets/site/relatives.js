// What stands beside a feature's texts: its top tokens, features like it, and the tokens that it promotes.

import { getName } from "./data.js";
import { make, number } from "./shared/elements.js";
import { linkTo, nameOf, share, unnamed, visible } from "./words.js";

const FIRST = 8; // rows of a list that show at first

// The section with the tokens on which the feature is active.
export function topTokens({ tokens, count }) {
  const most = Math.max(...tokens.map((token) => token[1]), 1);
  const rows = tokens.map(([text, times, strength]) => row(make("bdi", {}, visible(text)), times / most,
    [`${number(times)}×`, number(strength)], `${share(times / Math.max(count, 1))} of its matches, mean ${number(strength)}`));
  return section("tokens", "Top tokens", rows, count ? "The store has no tokens of this feature." : "None: it is never active.",
    ["times", "mean"]);
}

// The sections with the features like this one; their names come when the shards of names are there.
export function likeness(sae, about) {
  return [
    section("neighbours", "Nearest features", others(sae, about.neighbours), "The store has no neighbours: no bundle was given when it was made.", ["cosine of decoder rows"]),
    section("together", "Active together", others(sae, about.together), about.count ? "The store does not know which features are active together." : "None: it is never active.", ["phi correlation"]),
  ];
}

// The section with the tokens whose logits the feature raises and lowers.
export function logits({ promoted, suppressed }) {
  const list = (tokens) => (tokens ?? []).map(([text, logit]) => row(make("bdi", {}, visible(text)), null, [number(logit)]));
  if (!promoted && !suppressed) return section("logits", "Promoted tokens", [], "The store does not know which tokens this feature promotes; the overview says why.", []);
  return make("div", { className: "two" }, section("promoted", "Promoted tokens", list(promoted), "None.", ["logit"]),
    section("suppressed", "Suppressed tokens", list(suppressed), "None.", ["logit"]));
}

function others(sae, list) {
  return (list ?? []).map(([feature, value]) => {
    const { link, told } = linkTo(sae, feature);
    tellName(sae, feature, told);
    return row(link, Math.max(0, value), [number(value)]);
  });
}

// A name is fetched when its line comes into view, since it may lie in a shard of its own.
function tellName(sae, feature, told) {
  const watcher = new IntersectionObserver(async (entries) => {
    if (!entries.some((entry) => entry.isIntersecting)) return;
    watcher.disconnect();
    told.textContent = await getName(sae, feature).then((one) => nameOf(one) ?? unnamed(one), () => "");
  }, { rootMargin: "200px" });
  watcher.observe(told.parentElement);
}

function section(id, title, rows, none, columns) {
  const list = make("ul", { className: `list columns-${columns.length}` }, ...rows.slice(0, FIRST));
  const more = rows.length > FIRST ? make("button", { type: "button", className: "plain more", on: { click: () => { list.append(...rows.slice(FIRST)); more.remove(); } } }, `${rows.length - FIRST} more`) : null;
  return make("section", { className: `of-${id}`, attributes: { "aria-labelledby": `${id}-title` } },
    make("div", { className: "row title" }, make("h2", { id: `${id}-title` }, title), rows.length ? make("small", {}, columns.join(" · ")) : null),
    rows.length ? list : make("p", { className: "note" }, none), more);
}

// A row of a list: a name, over a bar of a part of the width unless that is null, and values. title: what hovering tells.
function row(name, part, values, title = "") {
  const bar = part === null ? null : make("span", { className: "part", attributes: { "aria-hidden": "true" } });
  bar?.style.setProperty("--part", Math.min(1, part).toFixed(3));
  return make("li", { title }, bar, make("span", { className: "what" }, name), ...values.map((value) => make("span", { className: "value" }, value)));
}
