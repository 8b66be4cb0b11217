// What a language model writes without edits and with them, side by side, token by token.

import { make, number, plain } from "../shared/elements.js";
import { session } from "./session.js";

const MOST = 512;
let wished = 40; // tokens of an answer, kept from page to page

// The most tokens of an answer that the visitor wants.
export const wishedTokens = () => wished;

// asked(): {text, edits} with the model's names of SAEs. onKnown(): called when the visitor wants other answers, or more is
// known of the model. The element has `update()` and `stop()`.
export function answersBox(asked, onKnown = () => {}) {
  let running = null, plainAnswer = { of: null };
  const tokens = make("input", { type: "number", min: 1, max: MOST, value: wished, id: "answer-tokens", attributes: { inputmode: "numeric" } });
  const write = make("button", { type: "button", className: "main write" }, "Write both answers");
  const stop = make("button", { type: "button", className: "stop", hidden: true }, "Stop");
  const error = make("p", { className: "error", attributes: { role: "alert" } });
  const sides = [side("Without edits"), side("With edits")];
  const pair = make("div", { className: "pair", hidden: true }, ...sides.map((one) => one.element));
  const element = make("div", { className: "answers" }, make("h2", {}, "Answers"),
    make("div", { className: "row" }, write, stop, make("label", { htmlFor: "answer-tokens" }, "Tokens"), tokens), error, pair);

  write.addEventListener("click", compare);
  stop.addEventListener("click", () => running?.abort());
  tokens.addEventListener("change", () => {
    wished = Math.min(Math.max(Math.round(tokens.valueAsNumber) || wished, 1), MOST);
    tokens.value = wished;
    onKnown();
  });

  async function compare() {
    const model = session.model, { text, edits } = asked();
    if (!model || running) return;
    if (!text.trim()) { error.textContent = "Type a question above."; return; }
    running = new AbortController();
    const { signal } = running;
    error.textContent = "";
    pair.hidden = write.hidden = false;
    write.disabled = true;
    stop.hidden = false;
    stop.focus();
    const known = plainAnswer.of === [model.about.in, model.about.name, text, wished].join("\n") ? plainAnswer.answer : null;
    const first = () => known ? sides[0].end(known) : sides[0].write(model, text, [], signal).then((answer) => {
      if (!signal.aborted) plainAnswer = { of: [model.about.in, model.about.name, text, wished].join("\n"), answer };
    });
    const second = () => edits.length ? sides[1].write(model, text, edits, signal) : sides[1].none();
    try {
      if (model.about.in === "server") await Promise.all([first(), second()]); // it writes both at once
      else { await first(); if (!signal.aborted) await second(); }
    } catch (failure) {
      if (failure.name !== "AbortError") error.textContent = plain(failure.message);
    }
    if (document.activeElement === stop) write.focus();
    running = null;
    stop.hidden = true;
    write.disabled = false;
    element.update();
    onKnown();
  }

  element.update = () => {
    const { edits } = asked();
    write.textContent = edits.length ? "Write both answers" : "Write an answer";
  };
  element.stop = () => running?.abort();
  element.update();
  return element;
}

// One of the answers, with its speed below.
function side(name) {
  const text = make("div", { className: "answer", attributes: { "aria-live": "off" } }), speed = make("p", { className: "note", attributes: { role: "status" } });
  const element = make("div", {}, make("h3", {}, name), text, speed);
  const end = ({ text: written, tokens, seconds }) => {
    text.textContent = plain(written);
    speed.textContent = tokens ? `${number(tokens)} tokens, ${number(tokens / Math.max(seconds, 1e-3), 2)} a second` : "";
  };
  return {
    element, end,
    none: () => { text.textContent = ""; speed.textContent = "There are no edits."; },
    write: async (model, prompt, edits, signal) => {
      text.textContent = "";
      speed.textContent = "Reading the question …";
      const answer = await model.answer(prompt, edits, {
        tokens: wished, signal, onText: (written) => { text.textContent = plain(written); speed.textContent = "Writing …"; },
      });
      end(answer);
      return answer;
    },
  };
}
