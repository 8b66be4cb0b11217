// A server of `sae-runtime serve`, asked by a page of the same address.

export class Server {
  // base: where its routes begin, such as "/". locked: is called when it asks for a key, or does not know the one it got.
  constructor(base = "/", locked = () => {}) {
    this.base = base.replace(/\/$/, "");
    this.locked = locked;
    this.key = ""; // kept until the page is left, and nowhere else
    this.asksForKey = false;
    this.withoutTemplate = new Set(); // models that were found to have no chat template
  }

  // The answer to a request; a body makes it a POST. Raises Error with the server's sentence, and with its status.
  async ask(path, body, signal) {
    const headers = {};
    if (this.key) headers.Authorization = `Bearer ${this.key}`;
    if (body) headers["Content-Type"] = "application/json";
    let answer;
    try {
      answer = await fetch(this.base + path, { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body), signal });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Error("The server did not answer; look whether it runs, and try again.");
    }
    if (answer.ok) return answer;
    if (answer.status === 401) {
      this.asksForKey = true;
      this.locked(Boolean(this.key));
    }
    let said = null;
    try { said = (await answer.json()).error; } catch { /* not JSON, as of a proxy */ }
    const sentence = typeof said === "string" ? said : said?.message ?? `The server answered ${answer.status}.`;
    throw Object.assign(new Error(sentence), { status: answer.status });
  }

  async json(...given) {
    const answer = await this.ask(...given);
    try {
      return await answer.json();
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Error("The server's answer is no JSON; look whether sae-runtime serve answers at this address.");
    }
  }

  // Vectors of texts, in their order. sae: what is asked of the SAEs, or null.
  async vectors(model, input, sae, signal) {
    const body = { model, input, encoding_format: "float", ...(sae ? { sae } : {}) };
    const data = (await this.json("/v1/embeddings", body, signal))?.data;
    const isVector = (one) => Array.isArray(one?.embedding) && one.embedding.every(Number.isFinite);
    if (!Array.isArray(data) || data.length !== input.length || !data.every(isVector)) {
      throw new Error("The server gives no vector of numbers for each text; look whether sae-runtime serve answers at this address.");
    }
    return data.map((one) => one.embedding);
  }

  // The events of an answer to a prompt, as they come. A model without a chat template goes on with a text.
  async * answer(model, prompt, sae, tokens, signal) {
    const body = { model, max_tokens: tokens, temperature: 0, stream: true, stream_options: { include_usage: true }, ...(sae ? { sae } : {}) };
    const complete = () => this.ask("/v1/completions", { ...body, prompt }, signal);
    let answer;
    try {
      answer = await (this.withoutTemplate.has(model) ? complete()
        : this.ask("/v1/chat/completions", { ...body, messages: [{ role: "user", content: prompt }] }, signal));
    } catch (error) {
      if (!/template/.test(error.message)) throw error;
      this.withoutTemplate.add(model);
      answer = await complete();
    }
    for await (const told of events(answer.body)) {
      if (told.error) throw new Error(told.error.message ?? "The answer ended.");
      const choice = told.choices?.[0];
      yield { text: choice?.delta?.content ?? choice?.text ?? "", tokens: told.usage?.completion_tokens ?? null };
    }
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

// Tokens of /v1/features with the part of the text that each is, and what stands before it. Offsets count characters,
// which are not JavaScript's UTF-16 units. A token without a character of its own has the text "".
export function placed(text, tokens) {
  const signs = Array.from(text);
  let read = 0;
  return tokens.map((token) => {
    if (token.special && token.end <= token.start) return { ...token, name: token.token, text: token.token, gap: "" };
    const start = Math.max(token.start, read), end = Math.max(token.end, start); // tokens of one character's bytes have one place
    const gap = signs.slice(read, start).join("");
    read = end;
    return { ...token, gap, text: signs.slice(start, end).join("") };
  });
}
