// The overview: what this SAE is at a glance, and where to begin.

import { bars, logLog } from "./charts.js";
import { getOverview } from "./data.js";
import { address } from "./route.js";
import { make, number, plain } from "./shared/elements.js";
import { listenToTokens, textOf } from "./tokens.js";
import { counted, linkTo, nameOf, rowName, share, small, unnamed } from "./words.js";

const FIRST_CARDS = 9;

export async function show(place, site, sae) {
  const about = await getOverview(sae);
  place.append(head(about, sae), figures(about), pictures(about), starters(about, sae));
  const comparison = place.appendChild(make("div", {}));
  place.append(origin(about, site));
  if (site.saes.length > 1) setTimeout(() => compare(comparison, site, sae)); // after this SAE has been shown
  return listenToTokens(place);
}

function head(about, sae) {
  const where = [about.model && `of ${plain(about.model)}`, about.hook && `at ${plain(about.hook)}`].filter(Boolean).join(" ");
  const read = rowName(about) === "document" ? counted(about.documents, "document") : `${counted(about.tokens, "token")} of ${counted(about.documents, "document")}`;
  return make("header", { className: "page-head" },
    make("h1", {}, make("bdi", {}, plain(about.name))),
    make("p", { className: "lead" }, `${counted(about.d_sae, "feature")} ${where}, measured on ${read}.`),
    make("p", { className: "row" },
      make("a", { className: "button main", href: address(sae, "search") }, "All features"),
      make("span", { className: "note" }, "Keys: / finds a feature, r goes to one by chance, ? shows all keys.")));
}

function figures(about) {
  const { measured } = about, per = rowName(about);
  const items = [
    ["Features", number(about.d_sae), about.allocation],
    ["Dead", number(about.dead), `${share(about.dead / about.d_sae)} are never active here`],
    [`Active a ${per}`, number(about.l0), "on average (L0)"],
    ["Explained variance", measured?.explained_variance === undefined ? null : number(measured?.explained_variance, 4),
      measured?.fvu === undefined || measured?.fvu === null ? null : `FVU ${number(measured.fvu, 4)}, as its bundle says`],
    ["Matches", number(about.matches), `active pairs of ${per} and feature`],
  ];
  return make("dl", { className: "figures" }, ...items.filter(([, value]) => value !== null && value !== "–").map(([name, value, note]) =>
    make("div", {}, make("dt", {}, name), make("dd", {}, make("strong", {}, value), note ? make("small", {}, plain(note)) : null))));
}

// --- Pictures ---

function pictures(about) {
  const shown = [densities(about), histogram(about), activeFeatures(about)].filter(Boolean);
  return make("section", { attributes: { "aria-labelledby": "use-title" } }, make("h2", { id: "use-title" }, "How the features are used"),
    make("div", { className: "charts" }, ...shown));
}

function densities(about) {
  const { density: { rank, value }, law } = about, per = rowName(about);
  if (!rank.length) return null;
  const lines = [{ name: "measured", x: rank, y: value }];
  if (law?.rank?.length) lines.push({ name: "Zipf law", x: law.rank, y: law.value, dashed: true });
  const lawAt = (one) => lines.length < 2 ? "" : `; the law says ${share(between(one, law.rank, law.value))}`;
  const figure = logLog({
    title: "Density by rank", lines, xName: "rank of the feature", yName: `share of ${per}s`, yText: share,
    description: `The densest feature is active on ${share(value[0])} of the ${per}s, the one of rank ${number(rank[rank.length - 1])} on ${share(value[value.length - 1])}.`,
    read: (i) => `Rank ${number(rank[i])}: active on ${share(value[i])} of the ${per}s${lawAt(rank[i])}.`,
  });
  if (law?.what) figure.append(make("p", { className: "note" }, plain(law.what)));
  return figure;
}

// The value of a curve at a rank, straight between its points on double logarithmic axes.
function between(rank, ranks, values) {
  const after = ranks.findIndex((one) => one >= rank);
  if (after <= 0 || ranks[after] === rank) return values[after < 0 ? values.length - 1 : after];
  const part = Math.log(rank / ranks[after - 1]) / Math.log(ranks[after] / ranks[after - 1]);
  return values[after - 1] ** (1 - part) * values[after] ** part;
}

function histogram(about) {
  const { edges, counts } = about.histogram_of_density ?? { edges: [], counts: [] }, per = rowName(about);
  if (!counts.length) return null;
  const text = (power) => share(10 ** power);
  const ticks = Array.from({ length: 12 }, (_, i) => i - 11).filter((power) => power >= edges[0] && power <= edges[edges.length - 1]);
  return bars({
    title: "Features by density", counts, edges, xTicks: ticks, xText: text, xName: `share of ${per}s (log scale)`, yName: "features",
    description: `Densities of the features that are active, from ${text(edges[0])} to ${text(edges[edges.length - 1])}.`,
    read: (i) => `${counted(counts[i], "feature")} with a density of ${text(edges[i])} to ${text(edges[i + 1])}.`,
  });
}

function activeFeatures(about) {
  const { active } = about, per = rowName(about);
  if (!active?.length) return null;
  const last = active.length - 1;
  return bars({
    title: `Active features a ${per}`, counts: active, edges: active.map((_, i) => i - 0.5).concat(last + 0.5), xName: "active features", yName: `${per}s`,
    description: `The mean is ${number(about.l0)}, the most ${last}.`,
    read: (i) => `${counted(active[i], per)} with ${counted(i, "active feature")}.`,
  });
}

// --- Where to begin ---

function starters(about, sae) {
  if (!about.starters?.length) return make("p", { className: "note" }, "No feature stands out as one to look at first; All features lists them.");
  const per = rowName(about);
  const cards = about.starters.map((one) => {
    const { link } = linkTo(sae, one.feature, nameOf(one) ?? unnamed(one));
    return make("li", { className: "card" }, make("h3", {}, link), textOf(one.text, { max: one.max }),
      make("p", { className: "note" }, `active on ${share(one.density)} of the ${per}s, at most ${number(one.max)}`));
  });
  const list = make("ul", { className: "cards" }, ...cards.slice(0, FIRST_CARDS));
  const more = cards.length > FIRST_CARDS
    ? make("button", { type: "button", on: { click: () => { list.append(...cards.slice(FIRST_CARDS)); more.remove(); } } }, `${cards.length - FIRST_CARDS} more`) : null;
  return make("section", { attributes: { "aria-labelledby": "start-title" } }, make("h2", { id: "start-title" }, "Features to look at first"), list, more);
}

// --- All SAEs of the site ---

async function compare(place, site, sae) {
  const abouts = await Promise.all(site.saes.slice(0, 24).map((one) => getOverview(one).catch(() => null)));
  const per = [...new Set(abouts.filter(Boolean).map(rowName))].join(" or ") || "token";
  const names = ["", "features", "dead", `active a ${per}`, "explained variance", "FVU", "allocation", "hook", "tokens"];
  const lines = abouts.map((about, i) => {
    const one = site.saes[i], name = make("a", { href: address(one), attributes: one === sae ? { "aria-current": "page" } : {} }, make("bdi", {}, plain(one.name)));
    const values = about === null ? ["its files did not come"] : [number(about.d_sae), number(about.dead), number(about.l0),
      number(about.measured?.explained_variance, 4), number(about.measured?.fvu, 4), about.allocation ?? "–", about.hook ?? "–", number(about.tokens)];
    return make("tr", {}, make("th", { scope: "row" }, name), ...values.map((value) => make("td", {}, plain(value))));
  });
  place.replaceChildren(make("section", { attributes: { "aria-labelledby": "saes-title" } }, make("h2", { id: "saes-title" }, "The SAEs of this site"),
    make("div", { className: "wide compare" }, make("table", {}, make("thead", {}, make("tr", {}, ...names.map((name) => make("th", { scope: "col" }, name)))), make("tbody", {}, ...lines)))));
}

// --- Where it all is from ---

function origin(about, site) {
  const item = (name, ...values) => [make("dt", {}, name), make("dd", {}, ...values)];
  const licences = about.licences?.length ? about.licences.map(plain).join(", ") : "not stated";
  const texts = about.texts?.length ? about.texts.map((one) => make("div", {}, plain(one.file), one.documents === null ? null : make("small", {}, ` ${counted(one.documents, "document")}`))) : ["not stated"];
  return make("section", { attributes: { "aria-labelledby": "origin-title" } }, make("h2", { id: "origin-title" }, "Where this is from"),
    make("dl", { className: "origin" },
      ...item("Model", plain(about.model ?? "not stated")), ...item("Hook", plain(about.hook ?? "not stated")),
      ...item("Allocation", plain(about.allocation ?? "not stated")), ...item("Texts", ...texts), ...item("Licence of the texts", licences),
      ...item("Measured", rowName(about) === "document" ? counted(about.documents, "document") : `${counted(about.tokens, "token")}, ${small(about.tokens / Math.max(about.documents, 1))} a document`),
      ...item("Made by", plain(site.made_by ?? "sae-runtime")),
      ...(about.left_out?.length ? item("Not in the store", ...about.left_out.map((sentence) => make("div", {}, plain(sentence)))) : [])));
}
