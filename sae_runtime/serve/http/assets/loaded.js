// The table of what is loaded: each SAE with the figures of recent traffic, and those of its manifest under them.

import { make, number, plain } from "./shared/elements.js";
import { $, called, state } from "./state.js";

const ENOUGH = 200; // tokens, before recent figures are judged
const HEAD = ["", "d_in → features", "L0", "explained variance", "filled slots", "silent", "tokens seen"];

export function showLoaded() {
  const rows = state.models.flatMap((model) => model.saes.length ? model.saes.map((sae) => saeRow(model, sae)) : [plainRow(model)]);
  $("loaded").replaceChildren(
    make("thead", {}, make("tr", {}, ...HEAD.map((text) => make("th", { scope: "col" }, text)))),
    make("tbody", {}, ...rows.map((cells) => make("tr", {}, ...cells))));
  const watched = state.models.some((model) => model.saes.some((sae) => sae.recent));
  $("loaded-note").textContent = watched ? "Large: recent traffic. Small: the manifest. Red: far from it, so the model or the text may have drifted." : "";
}

function title(model, sae) {
  const about = sae && [model.kind === "bundle" ? null : sae.name, sae.rule, sae.hook, sae.labels ? `${number(sae.labels)} labels` : null];
  return make("td", {}, plain(called(model)), make("small", {}, plain((about ?? [model.kind]).filter(Boolean).join(" · "))));
}

const plainRow = (model) => [title(model), ...HEAD.slice(1).map(() => make("td", {}, "–"))];

function saeRow(model, sae) {
  const { recent = {}, expected = {}, totals = {} } = sae;
  const enough = recent.tokens >= ENOUGH;
  return [
    title(model, sae),
    make("td", {}, `${number(sae.d_in)} → ${number(sae.d_sae)}`),
    cell(recent.l0, expected.l0, enough && (recent.l0 > 1.5 * expected.l0 || recent.l0 < expected.l0 / 1.5)),
    cell(recent.explained_variance, expected.explained_variance,
      totals.sampled >= ENOUGH && recent.explained_variance < expected.explained_variance - 0.15),
    cell(recent.saturated, expected.saturated, enough && recent.saturated > 0.02, share),
    cell(recent.silent, expected.silent, recent.silent > 0.05 * sae.d_sae),
    make("td", {}, number(totals.tokens ?? 0)),
  ];
}

function cell(now, then, drifts, form = number) {
  const both = [now, then].every((value) => value !== null && value !== undefined);
  return make("td", {}, make("span", { className: both && drifts ? "drift" : "" }, form(now)), make("small", {}, form(then)));
}

const share = (value) => value === null || value === undefined ? "–" : `${number(100 * value)} %`;
