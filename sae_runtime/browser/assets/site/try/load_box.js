// Where the visitor decides which model is used: what it weighs, and where the text goes, is said before anything is loaded.

import { make, number, plain } from "../shared/elements.js";
import { cancel, load, prepare, session, useKey, watch } from "./session.js";

const megabytes = (bytes) => bytes < 1e6 ? `${number(Math.max(1, Math.round(bytes / 1e3)))} kB` : `${number(Math.round(bytes / 1e6))} MB`;

// The box, which follows the session. The element has `close()`, which ends that.
export function loadBox(site) {
  const box = make("div", { className: "load-box" });
  let shown = "";
  const show = () => {
    const form = [session.state, session.where, session.error, session.locked, Boolean(session.choices), session.model?.about.name, session.served.length].join("|");
    if (form !== shown) {
      const focused = box.contains(document.activeElement);
      shown = form;
      box.replaceChildren(...content(site));
      if (focused) box.querySelector("input, button")?.focus(); // a keyboard's place is not lost with the button
    }
    box.querySelector("progress") && tellProgress(box);
  };
  box.close = watch(show);
  show();
  prepare(site).catch((error) => box.replaceChildren(failure(error.message)));
  return box;
}

function content(site) {
  const { state, error, locked, choices, where } = session;
  if (!choices) return [make("p", { className: "note" }, "Looking for a model …")];
  if (locked && state !== "ready") return [keyForm(site), ...pageOffer(site)];
  if (state === "loading") return where === "page" ? loading() : [make("p", { className: "note" }, `Asking the server at ${location.host} …`)];
  if (state === "ready") return ready(site);
  const offers = [...pageOffer(site), ...serverOffer(site)];
  return [...(error ? [failure(error)] : []), ...(offers.length ? offers : [nothing()])];
}

const failure = (text) => make("p", { className: "error", attributes: { role: "alert" } }, plain(text));

const nothing = () => make("p", {}, plain(session.choices.problem), " Features can be steered by a server: ",
  make("code", {}, "sae-runtime serve MODEL --site SITE"));

function pageOffer(site) {
  const about = session.choices.page;
  if (!about) return [];
  const text = `The model is ${megabytes(about.bytes)}; it runs in your browser, and no text leaves this machine.`;
  return [offer(session.error ? "Try again" : "Load the model", "main load", () => load(site, "page"), text), ...told(about)];
}

function serverOffer(site) {
  if (!session.choices.server) return [];
  const text = `A server is at ${plain(location.host)}; what you type goes to it.`;
  return [offer("Use the server", session.choices.page ? "use-server" : "main use-server", () => load(site, "server"), text)];
}

const offer = (name, className, click, text) => make("div", { className: "row offer" },
  make("button", { type: "button", className, on: { click } }, name), make("span", {}, text));

// What weights of fewer bits change, measured when the site was made, and what else is to be known of the model.
function told({ agreement, weights, notes }) {
  const lines = [...(notes ?? [])];
  if (agreement?.jaccard >= 0) {
    const vectors = agreement.vectors >= -1 && agreement.vectors !== null ? `, and vectors have a cosine of ${number(agreement.vectors, 4)} or more` : "";
    lines.unshift(`Its weights are ${weights}. Of the features that are active with these or with the whole weights, `
      + `${number(100 * agreement.jaccard, 3)} % are active with both${agreement.texts ? ` on ${number(agreement.texts)} texts` : ""}${vectors}.`);
  }
  return lines.map((line) => make("p", { className: "note" }, plain(line)));
}

function loading() {
  return [make("p", { className: "row loading" },
    make("span", { className: "what" }, "Loading the model …"),
    make("progress", { max: 1, attributes: { "aria-label": "Loading of the model" } }),
    make("button", { type: "button", on: { click: cancel } }, "Cancel"))];
}

function tellProgress(box) {
  const { progress } = session;
  const bar = box.querySelector("progress");
  if (!progress?.total) return bar.removeAttribute("value");
  bar.value = Math.min(1, progress.loaded / progress.total);
  box.querySelector(".what").textContent = progress.loaded >= progress.total ? "Starting the model …"
    : `${megabytes(progress.loaded)} of ${megabytes(progress.total)}`;
}

function ready(site) {
  const { about } = session.model, { page, server } = session.choices;
  const where = about.in === "page" ? "runs in your browser; no text leaves this machine" : `answers at ${location.host}; what you type goes to it`;
  const other = about.in === "page" ? server && ["Use the server", () => load(site, "server")] : page && ["Use the browser", () => load(site, "page")];
  const names = about.in === "server" && session.served.length > 1 ? make("label", {}, "Model ", make("select", {
    className: "served", on: { change: (event) => load(site, "server", event.target.value) },
  }, ...session.served.map((name) => make("option", { value: name, selected: name === about.name }, plain(name))))) : null;
  return [make("div", { className: "row ready" },
    make("span", { className: "note", attributes: { role: "status" } }, make("b", {}, plain(about.name)), ` ${where}.`), names,
    other ? make("button", { type: "button", on: { click: other[1] } }, other[0]) : null)];
}

function keyForm(site) {
  const key = make("input", { type: "password", autocomplete: "off", spellcheck: false, id: "api-key" });
  const form = make("form", { className: "row key-form" }, make("label", { htmlFor: "api-key" }, "API key"), key, make("button", {}, "Use"));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    useKey(site, key.value.trim());
  });
  return make("div", {}, make("p", { attributes: { role: "status" } }, session.locked, " The key is kept until you leave this site."), form);
}
