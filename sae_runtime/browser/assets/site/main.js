// The frame of the site: it reads the address, puts a page's module in place, and leaves it again.
//
// A page's module exports `async show(place, site, sae, parameters)`. It fills `place`, which stands in the document when
// `show` has ended or after a moment, whichever is first, and may return a function that is called when the page is left.
// The first h1 in `place` names the document and gets the focus. Where a module exports `change(parameters)` too, it is
// called in place of `show` when the address changes to the same page of the same SAE; if it returns true, the page stays.

import { getFeature, getOverview, getServed, getSite } from "./data.js";
import { listen, showHelp } from "./keys.js";
import { address, go, numberOf, routeOf } from "./route.js";
import { make, plain } from "./shared/elements.js";

const MODULES = {
  overview: () => import("./overview.js"),
  feature: () => Promise.all([import("./feature.js"), import("./contexts.js"), import("./relatives.js")]).then(([page]) => page), // at once, not one after the other
  search: () => import("./search.js"),
  try: () => import("./try/try_it.js"),
};
const PATIENCE = 150; // milliseconds that the old page stays while the new one is made
const PAUSE = 120; // milliseconds from a key to a search
const $ = (id) => document.getElementById(id);

let site = null;
let shown = { page: null, sae: null, module: null, leave: null, entry: null };
let turn = 0; // number of the last change of the address: an older page that is ready late is thrown away

async function start() {
  $("closed").remove();
  const served = getServed();
  if (/^#\/[^/]+\/\d+/.test(location.hash)) MODULES.feature().catch(() => {}); // while site.json comes
  try {
    site = await getSite();
  } catch (error) {
    return showError(error);
  }
  if (!site.saes?.length) return showError(new Error("This site holds no SAE; make it again with sae-runtime browse STORE -o SITE."));
  site.served = site.model ? {} : await served; // without a model in the page a server at this address may have one
  $("home").textContent = plain(site.title ?? "Features");
  listenToHeader();
  listen({ next: () => step(1), previous: () => step(-1), random, search: () => $("query").select(), help: () => showHelp($("help")) });
  history.scrollRestoration = "manual";
  addEventListener("hashchange", mount);
  addEventListener("pagehide", rememberScroll);
  await mount();
}

async function mount() {
  const mine = ++turn;
  rememberScroll();
  const { hash } = location;
  let route;
  try {
    route = routeOf(hash, site);
  } catch (error) {
    return showError(error);
  }
  const entry = history.state?.entry ?? newEntry();
  const same = shown.page === route.page && shown.sae === route.sae;
  if (same && shown.module?.change?.(route.parameters)) {
    shown = { ...shown, entry, parameters: route.parameters };
    $("main").dataset.shown = hash;
    return showHeader();
  }
  const place = make("div", { className: `page ${route.page}` });
  const timer = setTimeout(() => replace(place, make("p", { className: "note" }, "Loading …")), PATIENCE);
  let module, leave;
  getOverview(route.sae).catch(() => {}); // every page needs it; the page's module says what is wrong
  try {
    module = await MODULES[route.page]();
    leave = await module.show(place, site, route.sae, route.parameters);
  } catch (error) {
    clearTimeout(timer);
    return mine === turn ? showError(error) : undefined;
  }
  clearTimeout(timer);
  if (mine !== turn) return leave?.();
  const first = shown.page === null;
  shown.leave?.();
  shown = { page: route.page, sae: route.sae, parameters: route.parameters, module, leave, entry };
  replace(place);
  showHeader();
  settle(place, first);
  if (shown.page === "search") enter();
  $("main").dataset.shown = hash;
}

// Put a page where the old one was. data-shown of main is the address whose page stands there whole. `waiting` stands before an empty page until it has content.
function replace(place, waiting = null) {
  if (waiting && place.childNodes.length) waiting = null;
  $("main").replaceChildren(...(waiting ? [waiting] : []), place);
}

// The document's title, the focus and the place on the page.
function settle(place, first) {
  const heading = place.querySelector("h1");
  const names = [heading?.dataset.title ?? heading?.textContent, plain(shown.sae.name), plain(site.title ?? "")];
  document.title = [...new Set(names)].filter(Boolean).join(" · ");
  const typing = document.activeElement === $("query");
  if (heading && !first && !typing && !place.contains(document.activeElement)) {
    heading.tabIndex = -1;
    heading.focus({ preventScroll: true });
  }
  $("status").textContent = first ? "" : document.title;
  scrollTo({ top: Number(stored(`scroll ${shown.entry}`) ?? 0), behavior: "instant" });
}

function showError(error) {
  const said = error.constructor === Error ? error.message : `Something in this page is not as expected (${error.message}); load it again, or make the site again with sae-runtime browse.`;
  shown.leave?.();
  shown = { page: null, sae: shown.sae ?? site?.saes?.[0] ?? null, module: null, leave: null, entry: null };
  document.title = "Not shown";
  if (site?.served) showHeader();
  $("main").replaceChildren(
    make("section", { className: "page" }, make("h1", { tabIndex: -1 }, "This page cannot be shown"),
      make("p", { className: "error", attributes: { role: "alert" } }, plain(said)),
      make("p", {}, make("a", { href: "#/" }, "Overview"))));
}

// --- Places on pages: each entry of the browser's history has a number, under which its place is remembered ---

function newEntry() {
  const entry = `${Date.now().toString(36)}${Math.random().toString(36).slice(2, 8)}`;
  history.replaceState({ entry }, "");
  return entry;
}

function rememberScroll() {
  if (!shown.entry) return;
  try {
    sessionStorage.setItem(`scroll ${shown.entry}`, String(scrollY));
  } catch { /* a browser that keeps nothing goes to the top */ }
}

function stored(name) {
  try {
    return sessionStorage.getItem(name);
  } catch {
    return null;
  }
}

// --- The header ---

let entered = false; // whether somebody pressed Enter for a search whose page is not there yet

function enter() {
  if (entered) shown.module?.focusFirst?.();
  entered = false;
}

function listenToHeader() {
  $("skip").addEventListener("click", () => $("main").focus());
  $("sae").replaceChildren(...site.saes.map((sae) => make("option", { value: sae.name }, plain(sae.name))));
  $("sae-label").hidden = site.saes.length < 2;
  $("sae").addEventListener("change", () => {
    const sae = site.saes.find((one) => one.name === $("sae").value);
    go(shown.page === "search" ? address(sae, "search", { q: $("query").value }) : shown.page === "try" ? address(sae, "try") : address(sae));
  });
  let timer = 0;
  const search = () => {
    clearTimeout(timer);
    go(address(shown.sae ?? site.saes[0], "search", { q: $("query").value }), { replace: shown.page === "search" });
  };
  $("query").addEventListener("input", () => { clearTimeout(timer); timer = setTimeout(search, PAUSE); });
  $("query").addEventListener("keydown", (event) => {
    if (event.key === "Escape") { // back to the page, where the keys of pages work; what was typed stays
      event.preventDefault();
      return ($("main").querySelector("h1[tabindex]") ?? $("main")).focus();
    }
    if (event.key !== "ArrowDown" || shown.page !== "search") return;
    event.preventDefault();
    shown.module.focusFirst();
  });
  $("search").addEventListener("submit", (event) => {
    event.preventDefault();
    const sae = shown.sae ?? site.saes[0], exact = numberOf($("query").value);
    if (exact !== null && exact < sae.d_sae) { clearTimeout(timer); return go(address(sae, exact)); }
    search();
    entered = true;
    if (shown.page === "search") enter();
  });
}

function showHeader() {
  const { sae, page } = shown;
  if (!sae) return;
  $("sae").value = sae.name;
  if (document.activeElement !== $("query")) $("query").value = page === "search" ? shown.parameters.get("q") ?? "" : "";
  const link = (name, text) => make("a", { href: address(sae, name), attributes: page === name ? { "aria-current": "page" } : {} }, text);
  const help = make("button", { type: "button", className: "plain", title: "Keys", attributes: { "aria-label": "Keys" }, on: { click: () => showHelp($("help")) } }, "?");
  $("nav").replaceChildren(
    link("overview", "Overview"), link("search", "Search"), ...(site.model || site.served.api ? [link("try", "Try it")] : []),
    make("button", { type: "button", className: "plain", on: { click: random } }, "Random"), help);
}

// --- From feature to feature ---

function step(by) {
  if (shown.page !== "feature") return;
  const { sae } = shown;
  go(address(sae, (Number(shown.parameters.get("feature")) + by + sae.d_sae) % sae.d_sae));
}

// A feature by chance; a dead one only where eight tries meet no other.
async function random() {
  const sae = shown.sae ?? site.saes[0];
  let feature = 0;
  for (let tries = 0; tries < 8; tries++) {
    feature = Math.floor(Math.random() * sae.d_sae);
    if ((await getFeature(sae, feature).catch(() => null))?.count) break;
  }
  go(address(sae, feature));
}

start();
