"use strict";
// What a server or a person says becomes text nodes and nothing else: this file never makes HTML out of strings.

const SHOWN = 12, PAUSE = 250; // features of a token; milliseconds from a slider's move to a comparison
const $ = (id) => document.getElementById(id);
const state = { models: [], model: null, sae: null, tokens: [], chosen: 0, edits: [], key: "", locked: false, running: null };

function make(tag, options = {}, ...children) {
  const { on = {}, attributes = {}, ...properties } = options;
  const element = Object.assign(document.createElement(tag), properties);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  for (const [name, listener] of Object.entries(on)) element.addEventListener(name, listener);
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

// Marks that turn the direction of what follows, and other signs that do not show, are written out.
function plain(text) {
  return String(text).replace(/[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u200b\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff]/g,
    (sign) => "\\u" + sign.charCodeAt(0).toString(16).padStart(4, "0"));
}

const number = (value, digits = 3) => value === null || value === undefined ? "–"
  : Number.isInteger(value) ? value.toLocaleString("en") : Number(value.toPrecision(digits)).toString();

// --- The server ---

async function ask(path, body, signal) {
  const headers = {};
  if (state.key) headers.Authorization = `Bearer ${state.key}`;
  if (body) headers["Content-Type"] = "application/json";
  let answer;
  try {
    answer = await fetch(path, { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body), signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server did not answer; look whether it runs, and try again.");
  }
  if (answer.ok) return answer;
  if (answer.status === 401) lock();
  let said = null;
  try { said = (await answer.json()).error; } catch { /* not JSON, as of a proxy */ }
  throw Object.assign(new Error(typeof said === "string" ? said : said?.message ?? `The server answered ${answer.status}.`),
    { status: answer.status });
}

const askJson = async (...given) => (await ask(...given)).json();

function lock() {
  state.locked = true;
  $("key-form").hidden = false;
  $("state").textContent = state.key ? "The server does not know this key." : "This server asks for a key.";
  $("key").focus();
}

function tell(id, error) {
  if (error?.name !== "AbortError") $(id).textContent = error ? plain(error.message) : "";
}

async function load() {
  try {
    const { models } = await askJson("/page/models");
    const first = !state.models.length;
    state.models = models;
    state.locked = Boolean(state.key);
    $("key-form").hidden = true;
    $("state").textContent = `${models.length} loaded at ${location.host}`;
    showLoaded();
    if (first) start();
  } catch (error) {
    if (error.status !== 401) $("state").textContent = plain(error.message);
  }
}

function start() {
  const readable = state.models.filter((model) => reads(model) || model.kind !== "bundle");
  $("model").replaceChildren(...readable.map((model) => make("option", { value: state.models.indexOf(model) }, called(model))));
  $("called").replaceChildren(...state.models.map((model, at) => make("option", { value: at }, called(model))));
  $("called-label").hidden = state.models.length < 2;
  $("try").hidden = !readable.some(reads);
  chooseModel(readable[0] ?? state.models[0]);
}

// --- What is loaded ---

const reads = (model) => model.operations.includes("features");
const called = (model) => state.models.filter((one) => one.name === model.name).length > 1 ? `${model.name}@${model.version}` : model.name;

function showLoaded() {
  const head = ["", "d_in → features", "L0", "explained variance", "filled slots", "silent", "tokens seen"];
  const rows = state.models.flatMap((model) => model.saes.length ? model.saes.map((sae) => saeRow(model, sae)) : [plainRow(model)]);
  $("loaded").replaceChildren(
    make("thead", {}, make("tr", {}, ...head.map((text) => make("th", { scope: "col" }, text)))),
    make("tbody", {}, ...rows.map((cells) => make("tr", {}, ...cells))));
  const watched = state.models.some((model) => model.saes.some((sae) => sae.recent));
  $("loaded-note").textContent = watched ? "Large: recent traffic. Small: the manifest. Red: far from it, so the model or the text may have drifted." : "";
}

function title(model, sae) {
  const about = sae && [model.kind === "bundle" ? null : sae.name, sae.rule, sae.hook, sae.labels ? `${number(sae.labels)} labels` : null];
  return make("td", {}, plain(called(model)), make("small", {}, plain((about ?? [model.kind]).filter(Boolean).join(" · "))));
}

const plainRow = (model) => [title(model), ...Array.from({ length: 6 }, () => make("td", {}, "–"))];

function saeRow(model, sae) {
  const { recent = {}, expected = {}, totals = {} } = sae;
  const cell = (now, then, drifts, form = number) => make("td", {},
    make("span", { className: now !== null && then !== null && now !== undefined && drifts ? "drift" : "" }, form(now)),
    make("small", {}, form(then)));
  const share = (value) => value === null || value === undefined ? "–" : `${number(100 * value)} %`;
  const enough = recent.tokens >= 200;
  return [
    title(model, sae),
    make("td", {}, `${number(sae.d_in)} → ${number(sae.d_sae)}`),
    cell(recent.l0, expected.l0, enough && (recent.l0 > 1.5 * expected.l0 || recent.l0 < expected.l0 / 1.5)),
    cell(recent.explained_variance, expected.explained_variance,
      totals.sampled >= 200 && recent.explained_variance < expected.explained_variance - 0.15),
    cell(recent.saturated, expected.saturated, enough && recent.saturated > 0.02, share),
    cell(recent.silent, expected.silent, recent.silent > 0.05 * sae.d_sae),
    make("td", {}, number(totals.tokens ?? 0)),
  ];
}

// --- A text and its features ---

function chooseModel(model) {
  state.model = model;
  $("model").value = $("called").value = state.models.indexOf(model);
  $("sae").replaceChildren(...model.saes.map((sae) => make("option", { value: sae.name }, plain(sae.name))));
  $("sae-label").hidden = model.saes.length < 2;
  state.sae = model.saes[0] ?? null;
  state.edits = [];
  state.tokens = [];
  const edits = model.saes.some((sae) => sae.edits);
  $("steer").hidden = !(edits && ["vectors", "text"].includes(model.kind));
  $("of-vectors").hidden = model.kind !== "vectors";
  $("of-text").hidden = model.kind !== "text";
  $("read").disabled = !reads(model);
  $("seen").hidden = $("compared").hidden = true;
  for (const id of ["read-error", "steer-error"]) tell(id, null);
  showEdits();
  showTabs();
}

async function read() {
  tell("read-error", null);
  $("read").disabled = true;
  try {
    const body = { model: called(state.model), input: [$("text").value], features: SHOWN };
    const [text] = (await askJson("/v1/features", body)).data;
    state.tokens = placed(body.input[0], text.tokens);
    state.chosen = Math.max(0, state.tokens.findIndex((token) => !token.special));
    $("seen").hidden = false;
    showTokens();
    load();
  } catch (error) {
    tell("read-error", error);
  }
  $("read").disabled = false;
}

// Tokens with the part of the text that each is, and what stands before it. Offsets count characters, not UTF-16 units.
function placed(text, tokens) {
  const signs = Array.from(text);
  let read = 0;
  return tokens.map((token) => {
    const features = token.features.filter((one) => one.sae === state.sae.name);
    if (token.special || token.end <= token.start || token.start < read) return { ...token, features, text: token.token, gap: "" };
    const gap = signs.slice(read, token.start).join("");
    read = token.end;
    return { ...token, features, gap, text: signs.slice(token.start, token.end).join("") };
  });
}

function showTokens() {
  const highlighted = state.edits.find((edit) => edit.sae === state.sae.name)?.feature;
  const strength = (token) => (highlighted === undefined ? token.features[0]
    : token.features.find((one) => one.feature === highlighted || one.label === highlighted))?.value ?? 0;
  const most = Math.max(...state.tokens.map((token) => token.special ? 0 : strength(token)), 1e-9);
  $("tokens").replaceChildren(...state.tokens.flatMap((token, at) => {
    const heat = token.special ? 0 : Math.min(5, Math.ceil(5 * strength(token) / most));
    const shown = make("span", {
      className: [heat ? `h${heat}` : "", token.special ? "special" : ""].join(" "),
      tabIndex: at === state.chosen ? 0 : -1,
      title: token.features.slice(0, 3).map((one) => `${one.feature}${one.label ? ` ${plain(one.label)}` : ""}: ${number(one.value)}`).join("\n"),
      attributes: { role: "option", "aria-selected": at === state.chosen },
      on: { click: () => chooseToken(at), mouseenter: () => showFeatures(at), mouseleave: () => showFeatures(state.chosen) },
    }, plain(token.text));
    return [...(token.gap ? [document.createTextNode(plain(token.gap))] : []), shown];
  }));
  $("tokens-note").textContent = highlighted === undefined ? "The colour is each token's strongest feature. Click a token, or use the arrow keys."
    : `The colour is feature ${plain(highlighted)}.`;
  showFeatures(state.chosen);
}

function chooseToken(at, focus = false) {
  state.chosen = Math.min(Math.max(at, 0), state.tokens.length - 1);
  showTokens();
  if (focus) $("tokens").querySelector("[aria-selected=true]")?.focus();
}

function showFeatures(at) {
  const token = state.tokens[at];
  if (!token) return;
  $("token-title").textContent = `“${plain(token.text)}”`;
  const most = Math.max(...state.tokens.filter((one) => !one.special || one === token).map((one) => one.features[0]?.value ?? 0), 1e-9);
  const editable = state.sae.edits && !$("steer").hidden;
  $("features").replaceChildren(...(token.features.length ? token.features.map((one) => make("li", {},
    make("span", { className: "id" }, String(one.feature)),
    make("span", {}, make("span", { className: "what" }, one.label ? plain(one.label) : ""),
      make("meter", { min: 0, max: most, value: one.value, attributes: { "aria-label": `feature ${one.feature}` } })),
    make("span", { className: "value" }, one.value.toFixed(2)),
    editable ? make("button", { on: { click: () => addEdit(one.feature, one.label, one.value) }, attributes: { "aria-label": `Steer feature ${one.feature}` } }, "Steer") : null,
  )) : [make("li", {}, "No feature is active.")]));
}

// --- Edits ---

function addEdit(feature, label = null, seen = null) {
  const known = state.edits.find((edit) => edit.feature === feature && edit.sae === state.sae.name);
  if (!known) {
    const times = state.sae.multiples;
    const most = times ? 5 : Math.max(1, Math.ceil(4 * (seen ?? 5)));
    state.edits.push({ sae: state.sae.name, feature, label, kind: "set", times, most, value: times ? 2 : most / 2 });
  }
  showEdits();
  if (state.tokens.length) showTokens();
  $("steer").scrollIntoView({ block: "nearest" });
  if (state.model.kind === "vectors") later();
}

function showEdits() {
  $("edits").replaceChildren(...state.edits.map((edit) => {
    const shown = make("output", {}, valueOf(edit));
    const slider = make("input", {
      type: "range", min: 0, max: edit.kind === "scale" ? 4 : edit.most, step: "any", value: edit.value, disabled: edit.kind === "ablate",
      attributes: { "aria-label": `strength of feature ${edit.feature}` },
      on: { input: () => { edit.value = Number(slider.value); shown.textContent = valueOf(edit); later(); showTab(); } },
    });
    const kind = make("select", {
      attributes: { "aria-label": "kind of edit" },
      on: { change: () => { edit.kind = kind.value; if (edit.kind === "scale") edit.value = Math.min(edit.value, 4); showEdits(); later(); } },
    }, ...["set", "add", "scale", "ablate"].map((one) => make("option", { value: one, selected: one === edit.kind }, one)));
    const remove = () => { state.edits.splice(state.edits.indexOf(edit), 1); showEdits(); if (state.tokens.length) showTokens(); later(); };
    const name = [typeof edit.feature === "number" ? edit.feature : null, edit.label ?? (typeof edit.feature === "string" ? edit.feature : null)];
    return make("li", {}, make("span", { className: "what" }, plain(name.filter((one) => one !== null).join(" · "))), kind, slider, shown,
      make("button", { on: { click: remove }, attributes: { "aria-label": `Remove the edit of feature ${edit.feature}` } }, "Remove"));
  }));
  const multiples = state.edits.some((edit) => edit.times && ["set", "add"].includes(edit.kind));
  $("edits-note").textContent = !state.edits.length ? "Take a feature of a token above, or name one."
    : multiples ? "x1 is the feature's largest activation on the text that was measured." : "";
  $("compare").disabled = !state.edits.length;
  showTab();
}

function valueOf(edit) {
  if (edit.kind === "ablate") return "0";
  return edit.times && edit.kind !== "scale" ? `x${edit.value.toFixed(2)}` : edit.value.toFixed(2);
}

function asJson(edit) {
  const value = edit.kind === "ablate" ? true : edit.times && edit.kind !== "scale" ? valueOf(edit) : Number(edit.value.toFixed(4));
  const one = { feature: edit.feature, [edit.kind]: value };
  return state.model.saes.length > 1 ? { ...one, sae: edit.sae } : one;
}

const asked = () => ({ edits: state.edits.map(asJson) });

// --- Before and after ---

let timer = 0;

function later() {
  clearTimeout(timer);
  if (state.model.kind === "vectors" && state.edits.length) timer = setTimeout(compare, PAUSE);
}

async function compare() {
  clearTimeout(timer);
  if (!state.edits.length) return;
  state.running?.abort();
  const running = state.running = new AbortController();
  tell("steer-error", null);
  $("stop").hidden = state.model.kind !== "text";
  try {
    await (state.model.kind === "vectors" ? compareVectors : compareAnswers)(running.signal);
  } catch (error) {
    running.abort();
    if (state.running === running) tell("steer-error", error);
  }
  if (state.running === running) $("stop").hidden = true;
}

async function vectors(input, sae, signal) {
  const body = { model: called(state.model), input, encoding_format: "float", ...(sae ? { sae } : {}) };
  return (await askJson("/v1/embeddings", body, signal)).data.map((one) => one.embedding);
}

function cosine(one, other) {
  let product = 0, left = 0, right = 0;
  for (let i = 0; i < one.length; i++) { product += one[i] * other[i]; left += one[i] ** 2; right += other[i] ** 2; }
  return product / Math.max(Math.sqrt(left * right), 1e-30);
}

async function compareVectors(signal) {
  const others = $("others").value.split("\n").filter((line) => line.trim());
  if (!others.length) throw new Error("Give some texts to compare with, one a line.");
  const [[plainly, ...rest], [steered]] = await Promise.all([
    vectors([$("text").value, ...others], null, signal), vectors([$("text").value], asked(), signal)]);
  const ranked = (vector) => others.map((text, at) => ({ text, at, near: cosine(vector, rest[at]) })).sort((a, b) => b.near - a.near);
  const before = ranked(plainly), after = ranked(steered);
  const rank = (list, at) => list.findIndex((one) => one.at === at);
  const list = (ranks) => make("ol", {}, ...ranks.map((one) => {
    const moved = rank(before, one.at) - rank(after, one.at);
    const arrow = ranks === after && moved ? make("span", { className: "up" }, moved > 0 ? ` ↑${moved}` : ` ↓${-moved}`) : null;
    return make("li", {}, plain(one.text), arrow, make("small", {}, ` ${one.near.toFixed(3)}`));
  }));
  $("before").replaceChildren(list(before));
  $("after").replaceChildren(list(after));
  $("compared-note").textContent = `The text with edits has cosine ${cosine(plainly, steered).toFixed(3)} with itself.`;
  $("compared").hidden = false;
}

async function compareAnswers(signal) {
  $("compared").hidden = false;
  $("compared-note").textContent = "";
  await Promise.all([write($("before"), null, signal), write($("after"), asked(), signal)]);
}

async function write(place, sae, signal) {
  const text = document.createTextNode("");
  place.replaceChildren(text);
  const most = Math.min(Math.max(Math.round(Number($("new-tokens").value)) || 60, 1), 512);
  const common = { model: called(state.model), max_tokens: most, temperature: 0, stream: true, ...(sae ? { sae } : {}) };
  const prompt = $("prompt").value;
  let answer;
  try {
    answer = await ask("/v1/chat/completions", { ...common, messages: [{ role: "user", content: prompt }] }, signal);
  } catch (error) {
    if (!/template/.test(error.message)) throw error;
    answer = await ask("/v1/completions", { ...common, prompt }, signal);  // a model without a chat template goes on with a text
  }
  for await (const told of events(answer.body)) {
    if (told.error) throw new Error(told.error.message ?? "The answer ended.");
    const choice = told.choices?.[0];
    if (choice) text.data += plain(choice.delta?.content ?? choice.text ?? "");
  }
}

async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  for (let left = ""; ;) {
    const { done, value } = await reader.read();
    if (done) return;
    const lines = (left + value).split("\n");
    left = lines.pop();
    for (const line of lines) if (line.startsWith("data: {")) yield JSON.parse(line.slice(6));
  }
}

// --- How to call it ---

const PROGRAMS = { curl: curlCode, Python: pythonCode, tritonclient: tritonCode, openai: openaiCode };
let program = "curl";

function showTabs() {
  $("tabs").replaceChildren(...Object.keys(PROGRAMS).map((name) => make("button", {
    tabIndex: name === program ? 0 : -1, attributes: { role: "tab", "aria-selected": name === program, "aria-controls": "code" },
    on: { click: () => { program = name; showTabs(); } },
  }, name)));
  showTab();
}

function showTab() {
  const model = state.models[Number($("called").value)];
  if (model) $("code").textContent = PROGRAMS[program](model);
}

const quoted = (value) => plain(JSON.stringify(value)); // the signs that do not show are no part of JSON's syntax
const someEdits = (model) => state.edits.length && called(model) === called(state.model) ? asked() : { edits: [example(model.saes.find((sae) => sae.edits), model)] };
const example = (sae, { saes }) => ({ feature: Math.min(12, sae.d_sae - 1), set: sae.multiples ? "x2" : 8.0, ...(saes.length > 1 ? { sae: sae.name } : {}) });
const path = (model, operation) => `/v2/models/${model.name}.${operation}${called(model) === model.name ? "" : `/versions/${model.version}`}/infer`;
const steers = (model) => model.saes.some((sae) => sae.edits);

function restBody(model) {
  if (model.kind !== "bundle") return ["/v1/features", { model: called(model), input: [$("text").value], features: 5 }];
  const { d_in } = model.saes[0];
  return [path(model, "encode"), { inputs: [{ name: "x", datatype: "FP32", shape: [1, d_in], data: `${d_in} numbers` }] }];
}

function curlCode(model) {
  const key = state.locked ? ` \\\n  -H "Authorization: Bearer $KEY"` : "";
  const call = (where, body) => `curl ${location.origin}${where} \\\n  -H "Content-Type: application/json"${key} \\\n  -d '${quoted(body).replaceAll("'", "'\\''")}'`;
  const [where, body] = restBody(model), calls = [];
  if (model.kind === "bundle" || reads(model)) calls.push(call(where, body).replace(/"data":"(\d+) numbers"/, `"data":['$(seq -s, $1)']`));
  const sae = steers(model) ? { sae: someEdits(model) } : {};
  if (model.kind === "vectors") calls.push(call("/v1/embeddings", { model: called(model), input: [$("text").value], ...sae }));
  if (model.kind === "text") calls.push(call("/v1/chat/completions",
    { model: called(model), messages: [{ role: "user", content: $("prompt").value }], max_tokens: 60, ...sae }));
  return [...calls, `curl ${location.origin}/v2/models/${model.name}.${model.operations[0]}${key}`].join("\n\n");
}

function pythonCode(model) {
  const [where, body] = restBody(model);
  const filled = quoted(body).replace(/"data":"(\d+) numbers"/, '"data":[0.1] * $1').replaceAll(":", ": ").replaceAll(": //", "://");
  const shown = model.kind === "bundle" ? `body = ${filled}`
    : `body = {"model": ${quoted(called(model))}, "input": [${quoted($("text").value)}], "features": 5}`;
  const headers = `{"Content-Type": "application/json"${state.locked ? ', "Authorization": f"Bearer {key}"' : ""}}`;
  return `import json\nimport urllib.request\n\n${state.locked ? 'key = "..."\n' : ""}${shown}
request = urllib.request.Request(${quoted(location.origin + where)}, json.dumps(body).encode(), ${headers})
answer = json.load(urllib.request.urlopen(request))
${model.kind === "bundle" ? 'print([output["name"] for output in answer["outputs"]])' : 'for token in answer["data"][0]["tokens"]:\n    print(token)'}`;
}

function tritonCode(model) {
  const headers = state.locked ? ', headers={"Authorization": f"Bearer {key}"}' : "";
  const version = called(model) === model.name ? "" : `, model_version=${quoted(model.version)}`;
  const tensor = model.kind === "bundle"
    ? `x = np.zeros((4, ${model.saes[0].d_in}), np.float32)  # activations\ntensor = http.InferInput("x", x.shape, "FP32")\ntensor.set_data_from_numpy(x)`
    : `text = np.array([${quoted($("text").value)}.encode()], object)\ntensor = http.InferInput("text", text.shape, "BYTES")\ntensor.set_data_from_numpy(text)`;
  const operation = model.kind === "bundle" ? "encode" : reads(model) ? "features" : "run";
  const outputs = operation === "run" ? `print(answer.get_response()["outputs"])` : `print(answer.as_numpy("indices"), answer.as_numpy("values"))`;
  return `import numpy as np\nimport tritonclient.http as http\n\n${state.locked ? 'key = "..."\n' : ""}client = http.InferenceServerClient(${quoted(location.host)})
${tensor}\nanswer = client.infer(${quoted(`${model.name}.${operation}`)}, [tensor]${version}${headers})\n${outputs}`;
}

function openaiCode(model) {
  if (!["vectors", "text"].includes(model.kind)) return "# The protocol of OpenAI has texts alone; this model takes none or gives none.";
  const sae = steers(model) ? `,\n    extra_body={"sae": ${quoted(someEdits(model)).replaceAll(":true", ":True")}}` : "";
  const head = `from openai import OpenAI\n\nclient = OpenAI(base_url=${quoted(`${location.origin}/v1`)}, api_key=${state.locked ? '"..."' : '"none"'})\n`;
  if (model.kind === "vectors") return `${head}answer = client.embeddings.create(\n    model=${quoted(called(model))},\n    input=[${quoted($("text").value)}]${sae},\n)
print(len(answer.data[0].embedding))`;
  return `${head}answer = client.chat.completions.create(\n    model=${quoted(called(model))},\n    messages=[{"role": "user", "content": ${quoted($("prompt").value)}}],
    max_tokens=60${sae},\n)\nprint(answer.choices[0].message.content)`;
}

// --- Keys and clicks ---

function arrows(event, at, count, go) {
  const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, Home: -count, End: count }[event.key];
  if (step === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  go(Math.min(Math.max(at + step, 0), count - 1));
}

$("key-form").addEventListener("submit", (event) => { event.preventDefault(); state.key = $("key").value.trim(); load(); });
$("model").addEventListener("change", () => chooseModel(state.models[Number($("model").value)]));
$("called").addEventListener("change", showTab);
$("sae").addEventListener("change", () => { state.sae = state.model.saes.find((sae) => sae.name === $("sae").value); if (!$("seen").hidden) read(); });
$("read").addEventListener("click", read);
$("text").addEventListener("keydown", (event) => { if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !$("read").disabled) read(); });
for (const id of ["text", "prompt"]) $(id).addEventListener("input", showTab);
$("tokens").addEventListener("keydown", (event) => arrows(event, state.chosen, state.tokens.length, (at) => chooseToken(at, true)));
$("tabs").addEventListener("keydown", (event) => arrows(event, Object.keys(PROGRAMS).indexOf(program), Object.keys(PROGRAMS).length, (at) => {
  program = Object.keys(PROGRAMS)[at];
  showTabs();
  $("tabs").querySelector("[aria-selected=true]").focus();
}));
function addNamed() {
  const named = $("feature").value.trim();
  if (named && state.sae) addEdit(/^\d{1,9}$/.test(named) ? Number(named) : named);
  $("feature").value = "";
}
$("add").addEventListener("click", addNamed);
$("feature").addEventListener("keydown", (event) => { if (event.key === "Enter") addNamed(); });
$("compare").addEventListener("click", compare);
$("stop").addEventListener("click", () => { state.running?.abort(); $("stop").hidden = true; });
$("copy").addEventListener("click", async () => {
  try { await navigator.clipboard.writeText($("code").textContent); $("copy").textContent = "Copied"; }
  catch { getSelection().selectAllChildren($("code")); $("copy").textContent = "Selected"; }
  setTimeout(() => { $("copy").textContent = "Copy"; }, 1500);
});
load();
