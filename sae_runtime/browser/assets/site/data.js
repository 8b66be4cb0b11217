// The files of the site: each is fetched once, the last few shards of features are kept, the neighbouring one is ready.

import { isFeature, isFeatures, isNames, isOverview, isServed, isSite } from "./shapes.js";

const KEPT = 16; // shards of features in memory, each below 5 MB
const texts = new Map(); // path -> promise of its content, in the order of use

export const getSite = () => content("site.json", isSite);
export const getOverview = (sae) => content(`${sae.folder}/overview.json`, isOverview);

// How many shards of names an SAE has, and one of them: {first, label, tokens, density, max}, lists of the same length.
export const countNames = async (sae) => (await getOverview(sae)).shards.names.length;
export const getNames = (sae, shard) => content(`${sae.folder}/names/${padded(shard, 4)}.json`, isNames);

// {api, models}: where a server answers at the same address; {} of a static site.
export const getServed = () => content("serve.json", isServed).catch(() => ({}));

// What the store knows of a feature.
export async function getFeature(sae, feature) {
  const { shards } = await getOverview(sae);
  const path = `${sae.folder}/features/${padded(shardOf(shards.features, feature), 5)}.json`;
  const { first, features } = await content(path, isFeatures, { few: true });
  const one = features?.[feature - first];
  if (one?.feature !== feature) throw new Error(`${path} does not hold feature ${feature}; make the site again with sae-runtime browse.`);
  if (!isFeature(one)) throw new Error(`Feature ${feature} in ${path} is not as sae-runtime browse writes it; make the site again.`);
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

function content(path, isAsExpected, { few = false } = {}) {
  const known = texts.get(path);
  if (known) {
    if (few) { texts.delete(path); texts.set(path, known); } // the last used stands last
    return known;
  }
  const read = readJson(path, isAsExpected);
  texts.set(path, read);
  read.catch(() => texts.delete(path)); // a file that did not come may come later
  if (few) forget();
  return read;
}

function forget() {
  const shards = [...texts.keys()].filter((path) => path.includes("/features/"));
  for (const path of shards.slice(0, -KEPT)) texts.delete(path);
}

async function readJson(path, isAsExpected) {
  let answer, text, value;
  try {
    answer = await fetch(path.split("/").map(encodeURIComponent).join("/"));
    text = await answer.text();
  } catch {
    throw new Error(`${path} did not come whole; look whether the host of this site still answers, and load the page again.`);
  }
  if (!answer.ok) throw new Error(`${path} did not come (status ${answer.status}); copy the folder of this site whole, and load the page again.`);
  try {
    value = JSON.parse(text);
  } catch {
    throw new Error(`${path} is no JSON; copy the folder of this site again, or make it again with sae-runtime browse.`);
  }
  if (!isAsExpected(value)) throw new Error(`${path} is not as sae-runtime browse writes it; make the site again.`);
  return value;
}

const padded = (shard, digits) => String(shard).padStart(digits, "0");
