// Addresses of pages: what the part after # names, and the part after # for a page.

// {page, sae, parameters} of an address; throws one sentence for an address that the site does not have. `parameters` is
// a URLSearchParams; of a feature's page it has `feature`, a number of this SAE.
export function routeOf(hash, site) {
  const [path, query = ""] = split(hash.replace(/^#/, ""));
  const [name, rest, more] = path.split("/").filter(Boolean).map(decoded);
  const parameters = new URLSearchParams(query);
  const sae = name === undefined ? site.saes[0] : site.saes.find((one) => one.name === name);
  if (!sae) throw new Error(`This site has no SAE named ${name}; it has ${site.saes.map((one) => one.name).join(", ") || "none"}.`);
  if (more !== undefined) throw new Error(`There is no page ${path}; go to the overview.`);
  if (rest === undefined) return { page: "overview", sae, parameters };
  if (rest === "search" || rest === "try") return { page: rest, sae, parameters };
  if (!/^\d{1,9}$/.test(rest)) throw new Error(`There is no page ${rest}; a feature is named by its number, 0 to ${sae.d_sae - 1}.`);
  const feature = Number(rest);
  if (feature >= sae.d_sae) throw new Error(`${sae.name} has features 0 to ${sae.d_sae - 1}, and there is no ${feature}.`);
  parameters.set("feature", String(feature));
  return { page: "feature", sae, parameters };
}

// The address of a page: address(sae), address(sae, 371), address(sae, "search", {q: "header"}).
export function address(sae, page = "overview", parameters = {}) {
  const query = new URLSearchParams(Object.entries(parameters).filter(([, value]) => value !== null && value !== undefined && value !== ""));
  const path = `#/${encodeURIComponent(sae.name)}${page === "overview" ? "" : `/${page}`}`;
  return String(query) ? `${path}?${query}` : path;
}

// The number that a query names, or null: "371", "#371".
export const numberOf = (query) => /^\s*#?\d{1,9}\s*$/.test(query) ? Number(query.replace(/\D/g, "")) : null;

// Go to an address. With `replace` the browser's back button skips the page that is left.
export function go(hash, { replace = false } = {}) {
  if (hash === location.hash) return;
  if (!replace) location.hash = hash;
  else {
    history.replaceState(history.state, "", hash);
    window.dispatchEvent(new HashChangeEvent("hashchange"));
  }
}

// Write other parameters into the address of the page that is shown, which stays as it is.
export function keep(hash) {
  history.replaceState(history.state, "", hash);
}

function split(path) {
  const mark = path.indexOf("?");
  return mark < 0 ? [path] : [path.slice(0, mark), path.slice(mark + 1)];
}

function decoded(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}
