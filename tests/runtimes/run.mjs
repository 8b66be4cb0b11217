// Run graphs under onnxruntime-web: `node run.mjs FOLDER_OF_THE_PACKAGE < calls.json > answers.json`, as run.py does.
import { readFileSync, readdirSync } from "node:fs";
import { dirname, join, resolve } from "node:path";
import { pathToFileURL } from "node:url";

const ort = await import(pathToFileURL(resolve(process.argv[2], "dist/ort.node.min.mjs")));
ort.env.wasm.numThreads = 1;
ort.env.logLevel = "fatal";

const ARRAYS = { int64: BigInt64Array, float32: Float32Array, float64: Float64Array };

function tensor([kind, shape, numbers]) {
  if (kind === "bool") return new ort.Tensor("bool", Uint8Array.from(numbers), shape);
  const values = ARRAYS[kind].from(numbers, kind === "int64" ? BigInt : undefined);
  return new ort.Tensor(kind, values, shape);
}

// The files that a graph may refer to: in a page one names the files that it needs.
function filesBelow(folder, prefix = "") {
  return readdirSync(folder, { withFileTypes: true }).flatMap((entry) => {
    const path = prefix + entry.name;
    if (entry.isDirectory()) return filesBelow(join(folder, entry.name), `${path}/`);
    return /\.(safetensors|data)$/.test(path) ? [{ path, data: new Uint8Array(readFileSync(join(folder, entry.name))) }] : [];
  });
}

async function answer({ graph, feed }) {
  try {
    const externalData = filesBelow(dirname(graph));
    const options = { executionProviders: ["wasm"], externalData, logSeverityLevel: 4 };
    const session = await ort.InferenceSession.create(new Uint8Array(readFileSync(graph)), options);
    if (Object.keys(feed).some((name) => !session.inputNames.includes(name)))
      return { refused: "it feeds no input that has a default" };
    const inputs = Object.fromEntries(Object.entries(feed).map(([name, value]) => [name, tensor(value)]));
    const outputs = await session.run(inputs);
    await session.release();
    const plain = Object.entries(outputs).map(([name, { dims, data }]) => [name, [dims, Array.from(data, Number)]]);
    return { outputs: Object.fromEntries(plain) };
  } catch (error) {
    return { refused: String(error.message ?? error).replace(/\s+/g, " ") };
  }
}

const calls = JSON.parse(readFileSync(0, "utf8"));
const answers = {};
for (const [name, call] of Object.entries(calls)) answers[name] = await answer(call);
process.stdout.write(JSON.stringify(answers));
