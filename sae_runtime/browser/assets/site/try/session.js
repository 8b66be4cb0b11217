// The model that the visitor uses: loaded once, and kept while the pages of the site come and go.

import { getOverview, getServed } from "../data.js";
import { Server } from "../shared/server.js";
import { aboutModel } from "./about.js";
import { ServedModel } from "./served_model.js";

// state: "idle", "loading" or "ready"; progress: {loaded, total, what} while the model of the page is read.
// choices: null until `prepare` has ended, then {page: about of the site's model or null, problem, server: whether one is here}.
export const session = {
  model: null, state: "idle", progress: null, error: "", choices: null, where: null, server: null, served: [], locked: null,
};
const watchers = new Set();
const MOST_SENTENCES = 60;
let prepared = null, turn = 0;

// Call `watcher` after each change of the session, until the function that is given back is called.
export function watch(watcher) {
  watchers.add(watcher);
  return () => watchers.delete(watcher);
}

function set(changed) {
  Object.assign(session, changed);
  for (const watcher of [...watchers]) watcher(session);
}

// Find out which models there are. A server is asked at once where the site has no model of its own.
export function prepare(site) {
  prepared ??= look(site).catch((error) => {
    prepared = null;
    throw error;
  });
  return prepared;
}

async function look(site) {
  const [about, served] = await Promise.all([aboutModel(site), getServed()]);
  const page = about && !about.problem ? about : null;
  const problem = about?.problem ?? (about ? null : "This site has no model in it.");
  if (served.api) {
    const server = new Server(served.api, (known) => set({ locked: known ? "The server does not know this key." : "This server asks for a key." }));
    set({ server: Object.assign(server, { models: served.models }) });
  }
  set({ choices: { page, problem: page ? null : problem, server: Boolean(served.api) } });
  if (!page && served.api) await load(site, "server");
}

// Load the model of the page, or begin to use the one of the server. A failure stands in session.error.
export async function load(site, where, name = null) {
  await prepareOnce(site);
  const mine = ++turn;
  session.model?.close();
  set({ model: null, where, state: "loading", progress: null, error: "", locked: null });
  try {
    const model = await (where === "page" ? ofPage(site, mine) : ofServer(site, name));
    if (mine !== turn) return model.close();
    set({ model, state: "ready", progress: null });
  } catch (error) {
    if (mine === turn) set({ model: null, state: "idle", progress: null, error: session.locked && error.status === 401 ? "" : error.message });
  }
}

// While `look` itself loads, the choices are known already.
const prepareOnce = (site) => session.choices ? null : prepare(site);

// Stop the loading, or let the loaded model go.
export function cancel() {
  turn++;
  opening?.close();
  session.model?.close();
  opening = null;
  set({ model: null, where: null, state: "idle", progress: null, error: "" });
}

let opening = null; // the model of the page while it is read

async function ofPage(site, mine) {
  const { PageModel } = await import("../model/page_model.js");
  const model = opening = new PageModel(session.choices.page, site.model.replace(/\/?[^/]*$/, ""));
  try {
    await model.load((progress) => { if (mine === turn) set({ progress }); });
    return model;
  } catch (error) {
    model.close(); // what was read of it goes too
    throw error;
  } finally {
    if (opening === model) opening = null;
  }
}

async function ofServer(site, name) {
  const models = (await session.server.json(session.server.models))?.models;
  const isModel = (one) => Array.isArray(one?.operations) && Array.isArray(one.saes);
  if (!Array.isArray(models) || !models.every(isModel)) throw new Error("The server gives no list of models; look whether sae-runtime serve answers at this address.");
  const latest = (one) => !models.some((other) => other.name === one.name && Number(other.version) > Number(one.version));
  const served = models.filter((one) => one.operations.includes("features")).map((one) => (
    new ServedModel(session.server, { ...one, latest: latest(one) }, site, [])));
  if (!served.length) throw new Error("The server has no model that reads texts; start it with one: sae-runtime serve MODEL --site SITE");
  set({ served: served.map((one) => one.about.name) });
  const fits = (one) => one.about.saes.some((sae) => sae.site !== null);
  const chosen = served.find((one) => one.about.name === name) ?? served.find(fits) ?? served[0];
  chosen.about.sentences = session.choices.page?.sentences ?? await sentencesOf(site);
  return chosen;
}

export async function useKey(site, key) {
  session.server.key = key;
  await load(site, "server");
}

// Texts of the corpus, where the site has no list for a model: those of the features to look at first.
async function sentencesOf(site) {
  const overviews = await Promise.all(site.saes.slice(0, 3).map((sae) => getOverview(sae).catch(() => null)));
  const texts = overviews.flatMap((one) => one?.starters ?? []).map(({ text }) => lineOf(text)).filter((text) => text.length >= 20);
  return [...new Set(texts)].slice(0, MOST_SENTENCES);
}

// The text of segments in one line, at most 240 characters of it.
function lineOf(segments) {
  const text = (segments ?? []).map((one) => typeof one === "string" ? one : one[0]).join("").replace(/\s+/g, " ").trim();
  const signs = Array.from(text);
  return signs.length > 240 ? `${signs.slice(0, 239).join("")}…` : text;
}

// The SAE of the model that is this SAE of the site; null: the model has it not.
export const ownSae = (about, sae) => about?.saes.find((one) => one.site === sae.name) ?? null;
