// The edits of a visitor as a list: kind, slider with a number, and a button that removes it.

import { make, plain } from "./elements.js";

export const KINDS = ["set", "add", "scale", "ablate", "cap"];
const MEANING = {
  set: "set: the activation gets this value (clamp)", add: "add: the activation is raised by this",
  scale: "scale: the activation is multiplied by this", ablate: "ablate: the activation becomes 0",
  cap: "cap: the activation is at most this",
};
const FACTOR = 4; // the most that a slider of scale multiplies by

// The range of an edit's slider: of scale a factor, of others up to `most`; add also lowers.
function rangeOf({ kind, most }) {
  if (kind === "scale") return [0, FACTOR];
  return kind === "add" ? [-most, most] : [0, most];
}

// A value that suits a kind that was just chosen.
function startOf(kind, { kind: before, value, most }) {
  if (kind === "ablate") return 0;
  const multiplies = (one) => one === "scale";
  if (before !== "ablate" && multiplies(kind) === multiplies(before)) return Math.min(Math.max(value, rangeOf({ kind, most })[0]), Math.max(value, most));
  return multiplies(kind) ? 2 : tidy(most / 2);
}

// A number with three digits or so, as a slider gives it.
export const tidy = (value) => Number(value.toPrecision(3));

// edits: [{feature, kind, value, most, ...}], which the list changes in place. nameOf(edit): nodes that name its feature.
// onChange(settled): called after each change, with false while a slider moves. The element has `update()`.
export function editList(edits, { nameOf, onChange, kinds = KINDS }) {
  const list = make("ul", { className: "edits" });
  list.update = () => list.replaceChildren(...edits.map((edit) => row(edit)));

  function row(edit) {
    const [low, high] = rangeOf(edit);
    const called = `of feature ${edit.feature}`;
    const reach = { min: Math.min(low, edit.value), max: Math.max(high, edit.value), step: "any", disabled: edit.kind === "ablate" };
    const slider = make("input", { type: "range", ...reach, value: edit.value, attributes: { "aria-label": `strength ${called}` } });
    const typed = make("input", { type: "number", step: "any", disabled: reach.disabled, value: edit.value, attributes: { "aria-label": `strength ${called}, as a number`, inputmode: "decimal" } });
    slider.addEventListener("input", () => {
      edit.value = tidy(Number(slider.value));
      typed.value = edit.value;
      onChange(false);
    });
    slider.addEventListener("change", () => onChange(true));
    slider.addEventListener("keydown", (event) => event.stopPropagation()); // arrows move the slider and nothing else
    typed.addEventListener("input", () => {
      if (typed.value === "" || !Number.isFinite(typed.valueAsNumber) || Math.abs(typed.valueAsNumber) > 1e6) return;
      edit.value = typed.valueAsNumber;
      slider.min = Math.min(low, edit.value);
      slider.max = Math.max(high, edit.value);
      slider.value = edit.value;
      onChange(false);
    });
    typed.addEventListener("change", () => { typed.value = edit.value; onChange(true); });
    const kind = make("select", { attributes: { "aria-label": `kind of edit ${called}` }, title: MEANING[edit.kind] },
      ...kinds.map((one) => make("option", { value: one, selected: one === edit.kind, title: MEANING[one] }, one)));
    kind.addEventListener("change", () => {
      edit.value = startOf(kind.value, edit);
      edit.kind = kind.value;
      list.update();
      list.children[edits.indexOf(edit)].querySelector("select").focus();
      onChange(true);
    });
    const remove = make("button", { type: "button", className: "remove", attributes: { "aria-label": `Remove the edit ${called}` }, on: { click: () => {
      edits.splice(edits.indexOf(edit), 1);
      list.update();
      onChange(true);
    } } }, "×");
    return make("li", {}, make("span", { className: "what" }, ...[nameOf(edit)].flat().map((one) => typeof one === "string" ? plain(one) : one)),
      kind, slider, typed, remove);
  }

  list.update();
  return list;
}
