// A model that runs in this page, in a worker. Every failure is an Error with one sentence.

export class PageModel {
  // `told` is model.json's object, `folder` the address of its folder.
  constructor(told, folder) {
    this.told = told;
    this.folder = new URL(`${String(folder).replace(/\/+$/, "")}/`, document.baseURI).href;
    this.about = {
      name: told.name,
      kind: told.kind,
      saes: told.saes,
      bytes: told.bytes,
      weights: told.weights,
      agreement: told.agreement,
      sentences: told.sentences,
      notes: told.notes ?? [],
      chat: Boolean(told.text?.chat),
      in: "page",
    };
    this.waiting = new Map();
    this.next = 0;
    this.worker = null;
  }

  // Load the model; `onProgress` gets {loaded, total, what}. A second call waits for the first.
  load(onProgress = () => {}) {
    if (this.told.problem) return Promise.reject(new Error(this.told.problem));
    if (!this.loading) {
      this.start();
      this.loading = this.ask("load", { about: this.told, folder: this.folder }, { onProgress });
      this.loading.catch(() => this.close());
    }
    return this.loading;
  }

  features(text) {
    return this.ask("features", { text: String(text) });
  }

  embed(texts, edits = []) {
    return this.ask("embed", { texts: texts.map(String), edits: plain(edits) });
  }

  // `chat` puts the chat template's text around the prompt, where the model has one.
  answer(prompt, edits = [], { tokens = 60, onText = () => {}, signal = null, chat = this.about.chat } = {}) {
    return this.ask("answer", { prompt: String(prompt), edits: plain(edits), tokens, chat }, { onText, signal });
  }

  close() {
    this.worker?.terminate();
    this.worker = this.loading = null;
    this.fail(new DOMException("the model was closed", "AbortError"));
  }

  start() {
    this.worker = new Worker(new URL("./worker.js", import.meta.url), { type: "module" });
    this.worker.addEventListener("message", ({ data }) => this.hear(data));
    this.worker.addEventListener("error", (event) => {
      event.preventDefault();
      const cause = event.message || "its file cannot be read";
      this.fail(new Error(`the worker of the model does not run (${cause}); load the page again`));
      this.close();
    });
  }

  ask(task, given, { onProgress = null, onText = null, signal = null } = {}) {
    if (!this.worker) return Promise.reject(new Error("the model is not loaded; load it first"));
    const id = this.next++;
    const { worker } = this;
    return new Promise((resolve, reject) => {
      const stop = () => worker.postMessage({ task: "stop", stops: id });
      const done = (settle) => (value) => {
        signal?.removeEventListener("abort", stop);
        settle(value);
      };
      this.waiting.set(id, { resolve: done(resolve), reject: done(reject), onProgress, onText });
      worker.postMessage({ id, task, ...given });
      if (signal?.aborted) stop();
      else signal?.addEventListener("abort", stop);
    });
  }

  hear({ id, result, error, progress, text }) {
    const one = this.waiting.get(id);
    if (!one) return;
    if (progress) return one.onProgress?.(progress);
    if (text !== undefined) return one.onText?.(text);
    this.waiting.delete(id);
    if (error !== undefined) one.reject(new Error(error));
    else one.resolve(result);
  }

  fail(error) {
    for (const one of this.waiting.values()) one.reject(error);
    this.waiting.clear();
  }
}

const plain = (edits) => edits.map(({ sae, feature, kind, value }) => ({ sae, feature, kind, value: value ?? null }));
