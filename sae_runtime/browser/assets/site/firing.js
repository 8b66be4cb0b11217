// Search by a typed text: the visitor's model reads it, and the features that are active on it are listed. Nothing is
// loaded before the visitor has seen how large the model is and has asked for it.

import { getName } from "./data.js";
import { table } from "./results.js";
import { make, number, plain } from "./shared/elements.js";
import { counted, visible } from "./words.js";

const MOST_FIRED = 200; // features of a text that are listed

// The form of the search, whose results go to `status` and `list`. {element, read(text), close()}; `asked(text)` is called
// when the visitor asks for another text.
export function firing({ site, sae, text, status, list, asked }) {
  const field = make("textarea", { rows: 3, value: text, id: "fires-text", spellcheck: false });
  const box = make("div", {});
  const ask = () => asked(field.value);
  field.addEventListener("keydown", (event) => { if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) ask(); });
  const element = make("section", {}, make("label", { attributes: { for: "fires-text" } }, "A text; the model reads it and tells which features are active"), field,
    make("div", { className: "row" }, make("button", { type: "button", className: "main", on: { click: ask } }, "Find features"), make("span", { className: "note" }, "Ctrl + Enter")), box);
  let closed = false, stop = () => {}, model = null, turn = 0, wanted = text;

  const tell = (error) => {
    status.replaceChildren();
    list.replaceChildren(make("p", { className: "error", attributes: { role: "alert" } }, plain(error.message)));
  };

  async function start() {
    const [{ loadBox }, { session, watch }, reading] = await Promise.all([import("./try/load_box.js"), import("./try/session.js"), import("./try/fires_on.js")]);
    if (closed) return;
    const offer = loadBox(site);
    box.append(offer);
    let state = session.state;
    const unwatch = watch(() => {
      if (session.state === state) return;
      state = session.state;
      if (state === "ready") read(wanted);
    });
    stop = () => { unwatch(); offer.close(); };
    model = { isReady: () => session.state === "ready", firesOn: reading.firesOn };
    read(wanted);
  }

  async function read(typed) {
    const mine = ++turn;
    wanted = typed;
    list.replaceChildren();
    status.textContent = "";
    if (!typed.trim() || !model) return;
    if (!model.isReady()) {
      status.textContent = "Load the model first; it then reads the text.";
      return;
    }
    try {
      const { tokens, features } = await model.firesOn(sae, typed);
      if (mine !== turn || closed) return;
      const rows = await Promise.all(features.slice(0, MOST_FIRED).map(async ([feature, value, places]) =>
        ({ feature, value, places, ...await getName(sae, feature).catch(() => ({ label: null, tokens: [] })) })));
      if (mine !== turn || closed) return;
      status.textContent = `${counted(features.length, "feature")} active on this text.`;
      const where = ({ places }) => `${[...new Set(places.map((place) => visible(tokens[place].text).trim()))].slice(0, 4).join(" · ")}`;
      list.replaceChildren(rows.length ? table(sae, rows, ["on", "tokens", "largest here"], (row) => [make("span", { className: "where" }, where(row)), number(row.places.length), number(row.value)], []) : "");
    } catch (error) {
      if (mine === turn && !closed) tell(error);
    }
  }

  start().catch((error) => { if (!closed) tell(error); });
  return { element, read, close: () => { closed = true; stop(); } };
}
