// The worker that holds a model: onnxruntime-web with one thread, the tokenizer, and one task at a time.
// A task is {id, task, ...}; answers are {id, result}, {id, error} and, on the way, {id, progress} or {id, text}.

import * as ort from "../../vendor/onnxruntime-web.js";
import { download, inFolder } from "./download.js";
import { featuresOf } from "./features.js";
import { answerOf } from "./generate.js";
import { Host } from "./host.js";
import { PageTokenizer } from "./tokenize.js";
import { vectorsOf } from "./vectors.js";

let host, tokenizer, embeds, told;
const stopped = new Set(); // ids of tasks that were aborted
let last = Promise.resolve();

self.addEventListener("message", ({ data }) => {
  if (data.task === "stop") {
    stopped.add(data.stops);
    return;
  }
  last = last.then(() => answer(data));
});

const TASKS = { load, features, embed, answer: write };

async function answer({ id, task, ...given }) {
  try {
    const { result, transfer = [] } = await TASKS[task](id, given);
    self.postMessage({ id, result }, transfer);
  } catch (error) {
    self.postMessage({ id, error: sentence(error) });
  }
  stopped.delete(id);
}

async function load(id, { about, folder }) {
  const total = about.bytes;
  let loaded = 0;
  const tell = (what) => self.postMessage({ id, progress: { loaded, total, what } });
  const fetched = async (file, size = null) => {
    const data = await download(inFolder(folder, file), size, (bytes) => {
      loaded += bytes;
      tell(`loading ${file}`);
    });
    return data;
  };
  const text = new TextDecoder().decode(await fetched(about.tokenizer));
  named("tokenizer.json is cut or no tokenizer", () => {
    told = JSON.parse(text);
    tokenizer = new PageTokenizer(told, about.special);
    embeds = about.lower_case ? new PageTokenizer(told, about.special, true) : tokenizer;
  });
  const graph = await fetched(about.graph);
  const externalData = [];
  for (const { path, file, bytes } of about.external) externalData.push({ path, data: await fetched(file, bytes) });
  tell("opening the model");
  ort.env.wasm.numThreads = 1;
  ort.env.wasm.wasmPaths = { wasm: new URL("../../vendor/ort-wasm-simd-threaded.wasm", import.meta.url).href };
  const options = {
    executionProviders: ["wasm"], // others change features, or lose bits of int64
    externalData,
    logSeverityLevel: 3,
    extra: { session: { disable_quant_qdq: "1" } }, // weights of eight bits are unpacked once, here
  };
  const session = await ort.InferenceSession.create(graph, options).catch((error) => {
    if (isOfMemory(error)) throw error;
    throw new Error(`${about.graph} cannot be opened (${bare(error)}); write the site again`);
  });
  host = new Host(session, about);
  return { result: null };
}

async function features(id, { text }) {
  return { result: await featuresOf(host, tokenizer, text) };
}

async function embed(id, { texts, edits }) {
  const result = await vectorsOf(host, embeds, texts, edits, pause);
  return { result, transfer: result.map((vector) => vector.buffer) };
}

async function write(id, { prompt, edits, tokens, chat }) {
  const onText = (text) => self.postMessage({ id, text });
  const isStopped = () => stopped.has(id);
  return { result: await answerOf(host, tokenizer, told, prompt, edits, { tokens, chat, onText, isStopped, pause }) };
}

// Lets messages come in; a timer would wait for some milliseconds.
function pause() {
  return new Promise((resolve) => {
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = () => {
      port1.close();
      resolve();
    };
    port2.postMessage(null);
  });
}

// Run what may fail on a damaged file; the file is named.
function named(what, run) {
  try {
    run();
  } catch (error) {
    throw new Error(`${what} (${bare(error)}); write the site again`);
  }
}

const bare = (error) => String(error?.message ?? error).replace(/\s+/g, " ").trim().slice(0, 300);
const isOfMemory = (error) => /out of memory|bad_alloc|allocat|RangeError/i.test(`${error?.name} ${bare(error)}`);

function sentence(error) {
  if (!isOfMemory(error)) return bare(error);
  const cause = `the browser has too little memory for this model (${bare(error)})`;
  return `${cause}; close other pages, or run it by sae-runtime serve`;
}
