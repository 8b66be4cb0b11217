// The edits of the visitor: sliders, a field that adds a feature by number or name, and a switch for all of them.

import { countNames, getName, getNames } from "../data.js";
import { best, matchKey, scan, wordsOf } from "../matching.js";
import { editList, tidy } from "../shared/edit_list.js";
import { make, plain } from "../shared/elements.js";
import { linkTo, nameOf, unnamed } from "../words.js";

const SUGGESTED = 8;
const REACH = 4; // sliders reach four times the feature's largest activation; a new edit sets the feature to that activation

// state: {edits, off}, which this changes in place. onChange(settled). The element has `add(feature, seen)` and `update()`.
export function steeringBox(site, sae, state, onChange) {
  const list = editList(state.edits, { nameOf: named, onChange: (settled) => { showNote(); onChange(settled); } });
  const note = make("p", { className: "note" });
  const error = make("p", { className: "error", attributes: { role: "alert" } });
  const onOff = make("input", { type: "checkbox", checked: !state.off });
  const clear = make("button", { type: "button", on: { click: () => { state.edits.splice(0); element.update(); onChange(true); } } }, "Remove all");
  const switches = make("div", { className: "row switches" }, make("label", {}, onOff, "Edits are on"), clear);
  onOff.addEventListener("change", () => { state.off = !onOff.checked; element.update(); onChange(true); });
  const field = make("input", {
    autocomplete: "off", spellcheck: false, placeholder: "number or label", id: "add-feature", enterKeyHint: "done",
    attributes: { list: "suggested-features", autocapitalize: "off" },
  });
  const suggested = make("datalist", { id: "suggested-features" });
  const form = make("form", { className: "row add" }, make("label", { htmlFor: "add-feature" }, "Feature"), field, suggested, make("button", {}, "Add"));
  const element = make("div", { className: "steering" }, form, error, list, switches, note);

  field.addEventListener("input", async () => {
    const query = field.value.trim(), isStale = () => field.value.trim() !== query;
    const found = /^\d*( ·.*)?$/.test(query) ? [] : await findFeatures(sae, query, isStale).catch(() => []);
    if (!isStale()) suggested.replaceChildren(...found.map(({ feature, name }) => make("option", { value: `${feature} · ${name}` })));
  });
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    try {
      error.textContent = "";
      const feature = await featureOf(sae, field.value.trim());
      if (feature === null) return;
      field.value = "";
      await element.add(feature);
    } catch (failure) {
      error.textContent = plain(failure.message);
    }
  });

  element.add = async (feature, seen = null) => {
    const known = state.edits.find((edit) => edit.feature === feature && edit.sae === sae.name);
    if (!known) {
      const edit = await measured(site, { sae: sae.name, feature, kind: "set", value: null }, seen);
      state.edits.push({ ...edit, value: tidy(edit.most / REACH) });
    }
    state.off = false;
    element.update();
    onChange(true);
    const row = list.children[state.edits.findIndex((edit) => edit.feature === feature && edit.sae === sae.name)];
    row.scrollIntoView({ block: "nearest" });
    row.querySelector("input[type=range]").focus({ preventScroll: true });
  };
  element.update = () => {
    list.update();
    onOff.checked = !state.off;
    list.classList.toggle("off", state.off);
    showNote();
  };

  function named(edit) {
    const of = site.saes.find((one) => one.name === edit.sae) ?? sae;
    const { link, told } = linkTo(of, edit.feature);
    getName(of, edit.feature).then((name) => { told.textContent = nameOf(name) ?? unnamed(name); }, () => {});
    return of === sae ? [link] : [link, make("small", {}, ` of ${plain(of.name)}`)];
  }

  function showNote() {
    switches.hidden = !state.edits.length;
    note.textContent = state.edits.length ? "" : "Take a feature with its Steer button, or name one here.";
  }

  element.update();
  return element;
}

// An edit with `most`, the end of its slider, and with the feature's label for programs.
export async function measured(site, edit, seen = null) {
  const name = await getName(site.saes.find((one) => one.name === edit.sae), edit.feature).catch(() => null);
  const largest = name?.max > 0 ? name.max : seen ?? 2;
  return { ...edit, most: tidy(REACH * largest), label: name ? name.label ?? null : null };
}

// The feature that a visitor names by number, by a suggestion, or by a label; null: nothing was typed.
async function featureOf(sae, typed) {
  if (!typed) return null;
  const number = /^(\d{1,9})(?: ·.*)?$/.exec(typed);
  if (number) {
    if (Number(number[1]) < sae.d_sae) return Number(number[1]);
    throw new Error(`${sae.name} has features 0 to ${sae.d_sae - 1}, and there is no ${number[1]}.`);
  }
  const found = await findFeatures(sae, typed);
  const exact = found.filter(({ name }) => name.toLowerCase() === typed.toLowerCase());
  if (exact.length === 1 || found.length === 1) return (exact[0] ?? found[0]).feature;
  throw new Error(found.length ? `Several features fit “${typed}”: ${found.map(({ feature }) => feature).join(", ")}; name one by its number.`
    : `No feature has a label or a top token like “${typed}”.`);
}

// The features that fit words best, as the page of search finds them.
async function findFeatures(sae, typed, isStale = () => false) {
  const words = wordsOf(typed), numbers = [], keys = [], names = new Map();
  const shards = words.length ? await countNames(sae) : 0;
  for (let shard = 0; shard < shards && !isStale(); shard++) {
    const here = await getNames(sae, shard);
    await scan(here, words, (feature, quality) => {
      numbers.push(feature);
      keys.push(matchKey(quality, here.max[feature - here.first]));
      names.set(feature, [here, feature - here.first]);
    }, isStale);
  }
  return best(numbers, keys, SUGGESTED).map((feature) => {
    const [{ label, tokens }, place] = names.get(feature);
    return { feature, name: nameOf({ label: label[place], tokens: tokens[place] }) };
  });
}
