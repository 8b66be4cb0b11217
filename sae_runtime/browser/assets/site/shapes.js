// What a file of the site must hold before a page reads it. A file may be cut, old or a stranger's.

const isText = (value) => typeof value === "string";
const isCount = (value) => Number.isInteger(value) && value >= 0;
const isNumber = (value) => Math.abs(value) < 1e39 && typeof value === "number"; // what float32 holds, with room for sums
const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);
const isListOf = (one) => (value) => Array.isArray(value) && value.every(one);
const isMaybe = (one) => (value) => value === null || value === undefined || one(value);
const isRow = (...ones) => (value) => Array.isArray(value) && ones.every((one, i) => one(value[i]));
const has = (fields) => (value) => isObject(value) && Object.entries(fields).every(([name, one]) => one(value[name]));

const isFirsts = (value) => isListOf(isCount)(value) && value[0] === 0;
const isCurve = (value) => has({ rank: isListOf(isNumber), value: isListOf(isNumber) })(value) && value.rank.length === value.value.length;
const isHistogram = (value) => has({ edges: isListOf(isNumber), counts: isListOf(isNumber) })(value)
  && (value.counts.length === 0 || value.edges.length === value.counts.length + 1);
const isParts = isListOf((part) => isText(part) || isRow(isText, isNumber)(part));

export const isServed = isObject;

export const isSite = has({ title: isMaybe(isText), saes: isListOf(has({ name: isText, folder: isText, d_sae: isCount, tokens: isCount })) });

export const isOverview = has({
  name: isText, d_sae: isCount, tokens: isCount, documents: isCount, matches: isCount, dead: isCount, l0: isNumber,
  model: isMaybe(isText), hook: isMaybe(isText), allocation: isMaybe(isText), active: isMaybe(isListOf(isNumber)),
  density: isCurve, law: isMaybe(isCurve), histogram_of_density: isMaybe(isHistogram), measured: isMaybe(isObject),
  texts: isListOf(has({ file: isText, documents: isMaybe(isCount) })), licences: isListOf(isText), left_out: isListOf(isText),
  starters: isListOf(has({ feature: isCount, label: isMaybe(isText), density: isNumber, max: isNumber, text: isParts })),
  shards: has({ features: isFirsts, names: isFirsts }),
});

export const isFeatures = has({ first: isCount, features: isListOf(isObject) });

const isFeatureOf = has({
  feature: isCount, label: isMaybe(isText), source: isMaybe(isText), density: isNumber, count: isCount, mean: isNumber, max: isNumber,
  histogram: isListOf(isNumber), edges: isMaybe(isListOf(isNumber)), bands: isListOf(isRow(isNumber, isNumber, isNumber)), tokens: isListOf(isRow(isText, isNumber, isNumber)),
  neighbours: isMaybe(isListOf(isRow(isCount, isNumber))), together: isMaybe(isListOf(isRow(isCount, isNumber))),
  promoted: isMaybe(isListOf(isRow(isText, isNumber))), suppressed: isMaybe(isListOf(isRow(isText, isNumber))),
  contexts: isListOf(has({ band: isCount, value: isNumber, parts: isParts, file: isMaybe(isText), row: isMaybe(isNumber), licence: isMaybe(isText) })),
});

export const isFeature = (value) => isFeatureOf(value) && (value.edges ?? [...value.histogram, 0]).length === value.histogram.length + 1;

const isColumns = has({
  first: isCount, label: isListOf(isMaybe(isText)), tokens: isListOf(isMaybe(isListOf(isText))), density: isListOf(isNumber), max: isListOf(isNumber),
});

export const isNames = (value) => isColumns(value)
  && [value.label, value.tokens, value.max].every((column) => column.length === value.density.length);
