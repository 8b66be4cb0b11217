// The calls for a text and edits, as Python with load_model, and as curl and openai against `sae-runtime serve`.
//
// call: {kind: "vectors" | "text" | "other", model, origin, key, chat, text, tokens, feature, saes, edits}
//   model    what the server calls it, and the folder of load_model
//   origin   of the server, such as http://127.0.0.1:8080
//   key      whether the server asks for one
//   chat     whether a language model has a chat template
//   feature  {sae, feature}: also read this feature; null: do not
//   several  whether the model has several SAEs, so that edits must name theirs
//   edits    [{sae, feature, kind, value, label}]; a value such as "x2" is a multiple of the feature's largest activation

import { comment, float, json, python, shell } from "./quoting.js";

// --- Python ---

export function pythonOf(call) {
  const { edits } = call;
  return lines(
    `from sae_runtime import ${edits.length ? "Edit, " : ""}load_model`, "",
    `model = load_model(${json(call.model)})  # the folder that sae-runtime splice left`,
    `text = ${json(call.text)}`,
    call.feature && reading(call),
    edits.length && ["", ...editLines(call)],
    (edits.length || !call.feature) && ["", ...{ vectors, text: answers, other: outputs }[call.kind](edits.length ? ", edits" : "", call)]);
}

function reading({ feature: { sae, feature }, several }) {
  const features = several ? `seen.saes[${json(sae)}]` : "seen.features";
  return ["", "seen = model.features(text)", "for number, token in enumerate(seen.tokens):",
    `    active, values = ${features}.row(number)`,
    `    print(token, values[active == ${feature}])  # of feature ${feature}; empty where it is not active`];
}

function editLines({ edits, several }) {
  const line = (edit, indent) => `${indent}${pythonEdit(edit)},${edit.label ? `  # ${comment(edit.label)}` : ""}`;
  if (!several) return ["edits = [", ...edits.map((edit) => line(edit, "    ")), "]"];
  const names = [...new Set(edits.map((edit) => edit.sae))];
  return ["edits = {", ...names.flatMap((name) => [`    ${json(name)}: [`,
    ...edits.filter((edit) => edit.sae === name).map((edit) => line(edit, "        ")), "    ],"]), "}"];
}

function pythonEdit({ feature, kind, value }) {
  const amount = kind === "ablate" ? "" : typeof value === "string" ? `, times=${float(Number(value.slice(1)))}` : `, ${float(value)}`;
  return `Edit.${kind}(${json(feature)}${amount})`;
}

const vectors = (edits) => edits
  ? ["before = model.embed(text)", `after = model.embed(text${edits})`, "print(before @ after)"]
  : ["vector = model.embed(text)", "print(vector.shape)"];

function answers(edits, { chat, tokens }) {
  const prompt = chat === false ? "text" : '[{"role": "user", "content": text}]';
  return [`for piece in model.generate(${prompt}${edits}, max_new_tokens=${tokens}):`, '    print(piece, end="", flush=True)'];
}

const outputs = (edits) => [`outputs = model.run(text${edits})`, "for name, array in outputs.items():", "    print(name, array.shape)"];

// --- What a server is asked ---

const ALL = 100; // features of a token, the most that a server gives: the one that is asked for need not be the strongest

const valuesOf = ({ feature: { sae, feature }, several }) => [
  `    print(token["token"], [one["value"] for one in token["features"] if one["feature"] == ${feature}${several ? ` and one["sae"] == ${json(sae)}` : ""}])`];

// Edits as a server is asked for them.
export function editObjects({ edits, several }) {
  return edits.map(({ sae, feature, kind, value }) => (
    { feature, [kind]: kind === "ablate" ? true : value, ...(several ? { sae } : {}) }));
}

// The path and the body of each request.
export function requestsOf(call) {
  const { kind, model, text, chat, tokens } = call;
  const sae = call.edits.length ? { sae: { edits: editObjects(call) } } : {};
  const read = ["/v1/features", { model, input: [text], features: ALL }];
  const written = chat === false ? ["/v1/completions", { model, prompt: text, max_tokens: tokens, temperature: 0, ...sae }]
    : ["/v1/chat/completions", { model, messages: [{ role: "user", content: text }], max_tokens: tokens, temperature: 0, ...sae }];
  const bytes = (name, value) => ({ name, datatype: "BYTES", shape: [1], data: [value] });
  const inputs = [bytes("text", text), ...(call.edits.length ? [bytes("edits", JSON.stringify(editObjects(call)))] : [])];
  const run = [`/v2/models/${encodeURIComponent(model)}.run/infer`, { inputs }];
  const asked = { vectors: ["/v1/embeddings", { model, input: [text], ...sae }], text: written, other: run }[kind];
  return [...(call.feature ? [read] : []), ...(call.feature && !call.edits.length ? [] : [asked])];
}

export const curlOf = (call) => requestsOf(call).map(([path, body]) => lines(
  `curl ${shell(call.origin + path)} \\`,
  call.key && '  -H "Authorization: Bearer $KEY" \\',
  "  -H 'Content-Type: application/json' \\",
  `  -d ${shell(json(body))}`)).join("\n\n");

export function openaiOf(call) {
  const { kind, model, text, chat, tokens, edits } = call;
  const sae = edits.length && `    extra_body={"sae": {"edits": ${python(editObjects(call))}}},`;
  const head = ["from openai import OpenAI", "",
    `client = OpenAI(base_url=${json(`${call.origin}/v1`)}, api_key=${call.key ? '"..."' : '"none"'})`];
  const read = ["answer = client.post(", '    "/features",',
    `    body={"model": ${json(model)}, "input": [${json(text)}], "features": ${ALL}},`, "    cast_to=object,", ")",
    'for token in answer["data"][0]["tokens"]:', ...(call.feature ? valuesOf(call) : ["    print(token)"])];
  if (kind === "other" || (call.feature && !edits.length)) {
    return lines(...(kind === "other" && !call.feature ? ["# OpenAI's protocol has vectors and answers, and this model gives neither.", "# Its features can be read:"] : []), ...head, ...read);
  }
  if (kind === "vectors") {
    return lines(...head, "answer = client.embeddings.create(", `    model=${json(model)},`, `    input=[${json(text)}],`, sae, ")",
      "print(len(answer.data[0].embedding))");
  }
  const prompt = chat === false ? `    prompt=${json(text)},` : `    messages=[{"role": "user", "content": ${json(text)}}],`;
  return lines(...head, `answer = client.${chat === false ? "completions" : "chat.completions"}.create(`, `    model=${json(model)},`, prompt,
    `    max_tokens=${tokens},`, "    temperature=0,", sae, ")", `print(answer.choices[0].${chat === false ? "text" : "message.content"})`);
}

const lines = (...given) => given.flat().filter((line) => line !== false && line !== null && line !== undefined && line !== 0).join("\n");
