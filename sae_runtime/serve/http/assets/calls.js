// How to call the server: the text and the edits of the page as programs.

import { curlOf, openaiOf, requestsOf } from "./shared/programs.js";
import { json, python, shell } from "./shared/quoting.js";
import { programTabs } from "./shared/tabs.js";
import { $, called, reads, server, state, steers } from "./state.js";
import { programEdits } from "./steering.js";

const chosen = () => state.models[Number($("called").value)];
const PROGRAMS = { curl: curlCode, Python: pythonCode, tritonclient: tritonCode, openai: openaiCode };
let tabs = null; // made when the first model is known

export function startCalls() {
  $("called").addEventListener("change", updateCalls);
  for (const id of ["text", "prompt"]) $(id).addEventListener("input", updateCalls);
}

export function updateCalls() {
  if (!chosen()) return;
  if (tabs) return tabs.update();
  tabs = programTabs(Object.fromEntries(Object.entries(PROGRAMS).map(([name, write]) => [name, () => write(chosen())])), "Programs that call the server");
  $("programs").append(tabs);
}

// What programs are made of (shared/programs.js).
function callOf(model) {
  const sae = model.saes.find((one) => one.edits);
  const mine = state.edits.length && model === state.model ? programEdits() : sae ? [example(sae)] : [];
  return {
    kind: model.kind, model: called(model), origin: location.origin, key: server.asksForKey, chat: true,
    text: model.kind === "text" ? $("prompt").value : $("text").value, tokens: 60, several: model.saes.length > 1,
    feature: reads(model) ? { sae: state.sae?.name, feature: 0 } : null,
    edits: steers(model) && ["vectors", "text"].includes(model.kind) ? mine : [],
  };
}

const example = (sae) => ({ sae: sae.name, feature: Math.min(12, sae.d_sae - 1), kind: "set", value: sae.multiples ? "x2" : 8 });
const path = (model, operation) => `/v2/models/${encodeURIComponent(`${model.name}.${operation}`)}${called(model) === model.name ? "" : `/versions/${model.version}`}`;

// --- A bundle, which takes activations ---

// The body of a request for the features of one activation vector, whose numbers a program writes.
const rows = ({ saes: [{ d_in }] }, numbers) => ({ inputs: [{ name: "x", datatype: "FP32", shape: [1, d_in], data: numbers }] });

function curlCode(model) {
  const key = server.asksForKey ? ' \\\n  -H "Authorization: Bearer $KEY"' : "";
  const about = `curl ${shell(location.origin + path(model, model.operations[0]))}${key}`;
  if (model.kind !== "bundle") return `${curlOf(callOf(model))}\n\n${about}`;
  const body = shell(json(rows(model, "NUMBERS"))).replace('"NUMBERS"', `['$(yes 0.1 | head -${model.saes[0].d_in} | paste -sd,)']`);
  return `curl ${shell(`${location.origin}${path(model, "encode")}/infer`)}${key} \\\n  -H 'Content-Type: application/json' \\\n  -d ${body}\n\n${about}`;
}

const PART = { "/v1/features": '["data"][0]["tokens"]', "/v1/embeddings": '["data"][0]["embedding"]', "/v1/chat/completions": '["choices"][0]["message"]["content"]' };

function pythonCode(model) {
  const bundle = model.kind === "bundle";
  const [route, asked] = bundle ? [`${path(model, "encode")}/infer`, rows(model, "NUMBERS")] : requestsOf(callOf(model)).at(-1);
  const body = python(asked).replace('"NUMBERS"', `[0.1] * ${model.saes[0]?.d_in}`);
  const headers = `{"Content-Type": "application/json"${server.asksForKey ? ', "Authorization": f"Bearer {key}"' : ""}}`;
  return `import json\nimport urllib.request\n\n${server.asksForKey ? 'key = "..."\n' : ""}body = ${body}
request = urllib.request.Request(${json(location.origin + route)}, json.dumps(body).encode(), ${headers})
answer = json.load(urllib.request.urlopen(request))
print(answer${PART[route] ?? '["outputs"]'})`;
}

function tritonCode(model) {
  const headers = server.asksForKey ? ', headers={"Authorization": f"Bearer {key}"}' : "";
  const version = called(model) === model.name ? "" : `, model_version=${json(model.version)}`;
  const tensor = model.kind === "bundle"
    ? `x = np.zeros((4, ${model.saes[0].d_in}), np.float32)  # activations\ntensor = http.InferInput("x", x.shape, "FP32")\ntensor.set_data_from_numpy(x)`
    : `text = np.array([${json($("text").value)}.encode()], object)\ntensor = http.InferInput("text", text.shape, "BYTES")\ntensor.set_data_from_numpy(text)`;
  const operation = model.kind === "bundle" ? "encode" : reads(model) ? "features" : "run";
  const outputs = operation === "run" ? 'print(answer.get_response()["outputs"])' : 'print(answer.as_numpy("indices"), answer.as_numpy("values"))';
  return `import numpy as np\nimport tritonclient.http as http\n\n${server.asksForKey ? 'key = "..."\n' : ""}client = http.InferenceServerClient(${json(location.host)})
${tensor}\nanswer = client.infer(${json(`${model.name}.${operation}`)}, [tensor]${version}${headers})\n${outputs}`;
}

function openaiCode(model) {
  return model.kind === "bundle" ? "# The protocol of OpenAI has texts alone; this model takes activations." : openaiOf(callOf(model));
}
