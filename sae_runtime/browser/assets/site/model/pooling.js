// One vector for a text, of the vectors of its tokens, as sae_runtime.deployed.pooling makes it.

// The modes' vectors, one after the other. `x` has t rows of d numbers; the first `prompt` tokens are left out.
export function pooled(x, t, d, modes, prompt = 0) {
  const weights = Array.from({ length: t }, (_, i) => (i < prompt ? 0 : 1));
  const vector = new Float32Array(d * modes.length);
  modes.forEach((mode, n) => vector.set(MODES[mode](x, weights, d), n * d));
  return vector;
}

export function normalised(vector) {
  let length = 0;
  for (const number of vector) length += number * number;
  length = Math.max(Math.sqrt(length), 1e-12);
  return vector.map((number) => number / length);
}

const row = (x, i, d) => Float64Array.from(x.subarray(i * d, (i + 1) * d));

const MODES = {
  cls: (x, weights, d) => row(x, Math.max(weights.indexOf(1), 0), d),
  lasttoken: (x, weights, d) => (weights.includes(1) ? row(x, weights.lastIndexOf(1), d) : new Float64Array(d)),
  max: (x, weights, d) => {
    const largest = new Float64Array(d).fill(-Infinity);
    weights.forEach((weight, i) => {
      for (let k = 0; weight && k < d; k++) largest[k] = Math.max(largest[k], x[i * d + k]);
    });
    return largest;
  },
  mean: (x, weights, d) => divided(...summed(x, weights, d)),
  mean_sqrt_len_tokens: (x, weights, d) => {
    const [sum, size] = summed(x, weights, d);
    return divided(sum, Math.sqrt(size));
  },
  weightedmean: (x, weights, d) => divided(...summed(x, weights.map((weight, i) => weight * (i + 1)), d)),
};

function summed(x, weights, d) {
  const sum = new Float64Array(d);
  let size = 0;
  weights.forEach((weight, i) => {
    size += weight;
    for (let k = 0; weight && k < d; k++) sum[k] += weight * x[i * d + k];
  });
  return [sum, Math.max(size, 1e-9)];
}

const divided = (sum, size) => sum.map((number) => number / size);
