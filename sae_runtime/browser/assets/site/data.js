// The files of the site: each is fetched once, the last few shards of features are kept, the neighbouring one is ready.

const KEPT = 16; // shards of features in memory, each below 5 MB
const texts = new Map(); // path -> promise of its content, in the order of use

export const getSite = () => content("site.json");
export const getOverview = (sae) => content(`${sae.folder}/overview.json`);

// How many shards of names an SAE has, and one of them: {first, label, tokens, density, max}, lists of the same length.
export const countNames = async (sae) => (await getOverview(sae)).shards.names.length;
export const getNames = (sae, shard) => content(`${sae.folder}/names/${padded(shard, 4)}.json`);

// {api, models}: where a server answers at the same address; {} of a static site.
export const getServed = () => content("serve.json").catch(() => ({}));

// What the store knows of a feature.
export async function getFeature(sae, feature) {
  const { shards } = await getOverview(sae);
  const path = `${sae.folder}/features/${padded(shardOf(shards.features, feature), 5)}.json`;
  const { first, features } = await content(path, { few: true });
  const one = features?.[feature - first];
  if (one?.feature !== feature) throw new Error(`${path} does not hold feature ${feature}; make the site again with sae-runtime browse.`);
  return one;
}

// Read the shard of a feature that may be looked at next.
export function prefetch(sae, feature) {
  if (feature >= 0 && feature < sae.d_sae) getFeature(sae, feature).catch(() => {});
}

// {label, tokens, density, max} of a feature, from the shards of names.
export async function getName(sae, feature) {
  const { shards } = await getOverview(sae);
  const { first, label, tokens, density, max } = await getNames(sae, shardOf(shards.names, feature));
  const place = feature - first;
  return { label: label[place] ?? null, tokens: tokens[place] ?? [], density: density[place], max: max[place] };
}

// The shard with a feature; firsts: the first feature of each shard.
export function shardOf(firsts, feature) {
  let low = 0, high = firsts.length - 1;
  while (low < high) {
    const middle = Math.ceil((low + high) / 2);
    if (firsts[middle] <= feature) low = middle;
    else high = middle - 1;
  }
  return low;
}

function content(path, { few = false } = {}) {
  const known = texts.get(path);
  if (known) {
    if (few) { texts.delete(path); texts.set(path, known); } // the last used stands last
    return known;
  }
  const read = readJson(path);
  texts.set(path, read);
  read.catch(() => texts.delete(path)); // a file that did not come may come later
  if (few) forget();
  return read;
}

function forget() {
  const shards = [...texts.keys()].filter((path) => path.includes("/features/"));
  for (const path of shards.slice(0, -KEPT)) texts.delete(path);
}

async function readJson(path) {
  let answer;
  try {
    answer = await fetch(path.split("/").map(encodeURIComponent).join("/"));
  } catch {
    throw new Error(`${path} did not come; look whether the server of this site still runs, and load the page again.`);
  }
  if (!answer.ok) throw new Error(`${path} did not come (${answer.status}); was the folder of this site copied whole?`);
  try {
    return await answer.json();
  } catch {
    throw new Error(`${path} is no JSON; make the site again with sae-runtime browse.`);
  }
}

const padded = (shard, digits) => String(shard).padStart(digits, "0");
