// The page of a feature: what it is called, how strongly and where it is active, what is near it, and how to call it.

import { contextsOf } from "./contexts.js";
import { bars } from "./charts.js";
import { getFeature, prefetch } from "./data.js";
import { address } from "./route.js";
import { likeness, logits, topTokens } from "./relatives.js";
import { copyButton } from "./shared/copy_button.js";
import { make, number, plain } from "./shared/elements.js";
import { listenToTokens } from "./tokens.js";
import { counted, nameOf, rowName, share, small } from "./words.js";

const LONGEST = 300; // characters of a text that goes along to the page where it is tried
const ANY_TEXT = "Open the file and read the first line of it."; // where the feature has no text

export async function show(place, site, sae, parameters) {
  const feature = Number(parameters.get("feature"));
  const about = await getFeature(sae, feature);
  const glance = make("div", { className: "glance" }, ...(about.count ? [activations(about), topTokens(about)] : []));
  const relatives = make("div", { className: "relatives" }, ...likeness(sae, about), logits(about));
  const call = make("section", { className: "call", attributes: { "aria-labelledby": "call-title" } }, make("h2", { id: "call-title" }, "Call it"));
  place.append(head(about, site, sae), figures(about, sae),
    make("div", { className: "columns" }, glance, contextsOf(about, rowName(sae)), relatives), call);
  setTimeout(() => {
    showCalls(call, site, sae, about);
    prefetch(sae, feature + 1);
    prefetch(sae, feature - 1);
  });
  return listenToTokens(place);
}

function head(about, site, sae) {
  const { feature } = about, name = nameOf(about), beside = (by) => address(sae, (feature + by + sae.d_sae) % sae.d_sae);
  const title = make("h1", { attributes: { "data-title": `${feature} ${name ?? ""}`.trim() } },
    make("span", { className: "id" }, String(feature)), " ", make("bdi", {}, name ?? (about.count ? "no name" : "never active")));
  const tries = site.model || site.served.api;
  const steps = make("nav", { className: "row", attributes: { "aria-label": "Features" } },
    make("a", { className: "button", href: beside(-1), rel: "prev", title: "Previous feature (p)" }, "← Previous"),
    make("a", { className: "button", href: beside(1), rel: "next", title: "Next feature (n)" }, "Next →"));
  const actions = make("div", { className: "row" },
    tries ? make("a", { className: "button main", href: address(sae, "try", { text: exampleText(about), edits: `set:${feature}:${strength(about)}` }) }, "Try it") : null,
    make("a", { className: "button", href: address(sae, "search", { like: feature }) }, "Like this feature"),
    copyButton(() => location.href, "Copy link"));
  return make("header", { className: "page-head" },
    make("div", { className: "apart" }, title, steps), make("div", { className: "apart" }, make("p", { className: "note" }, origin(about)), actions));
}

function origin({ label, source }) {
  if (label === null || label === undefined) return "No label.";
  if (source === "top tokens") return "No label: these are its top tokens.";
  return source === "person" ? "Labelled by a person." : `Label from ${plain(source ?? "an unknown source")}.`;
}

// An edit that shows: twice the largest activation.
const strength = ({ max }) => Number((2 * (max || 4)).toPrecision(2));

function exampleText({ contexts }) {
  const text = contexts?.[0]?.parts.map((part) => typeof part === "string" ? part : part[0]).join("").trim() ?? "";
  return text.length <= LONGEST ? text : "";
}

function figures(about, sae) {
  const per = rowName(sae);
  const items = [["Density", share(about.density), `of the ${per}s`], [`Active ${per}s`, number(about.count), `of ${number(sae.tokens)}`],
    ["Mean", about.count ? number(about.mean) : "–", "where it is active"], ["Largest", about.count ? number(about.max) : "–", "activation"]];
  return make("dl", { className: "figures" }, ...items.map(([name, value, note]) =>
    make("div", {}, make("dt", {}, name), make("dd", {}, make("strong", {}, value), make("small", {}, note)))));
}

function activations(about) {
  const { histogram, bands, max, count } = about;
  const edges = about.edges ?? Array.from({ length: histogram.length + 1 }, (_, i) => max * i / histogram.length);
  const bandOf = (value) => bands.findIndex(([low]) => value >= low);
  return make("section", { className: "activations" }, bars({
    title: "Activations", heading: "h2", counts: histogram, edges, shade: (i) => 0.2 + 0.8 * (i + 1) / histogram.length, xName: "activation", yName: "matches",
    lines: bands.slice(0, -1).map(([low]) => low),
    description: `${counted(count, "match", "matches")}, mean ${number(about.mean)}, largest ${number(max)}.`,
    read: (i) => `${number(histogram[i])} from ${small(edges[i])} to ${small(edges[i + 1])}${bandOf(edges[i + 1]) < 0 ? "" : `, band ${bandOf(edges[i + 1]) + 1}`}.`,
  }));
}

async function showCalls(place, site, sae, about) {
  try {
    const { callsOf } = await import("./calls.js");
    place.append(callsOf(site, sae, [], { feature: about.feature, text: exampleText(about) || ANY_TEXT, strength: strength(about), label: about.source === "top tokens" ? null : about.label }));
  } catch (error) {
    place.append(make("p", { className: "error" }, plain(error.message)));
  }
}
