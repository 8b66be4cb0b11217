// Tensors of onnxruntime-web for the types that model.json names.

import * as ort from "../../vendor/onnxruntime-web.js";

const ARRAYS = {
  int64: BigInt64Array,
  int32: Int32Array,
  float32: Float32Array,
  float64: Float64Array,
  float16: Uint16Array,
  bool: Uint8Array,
};
const ONE_IN_FLOAT16 = 0x3c00;

// A tensor of whole numbers, in the type that an input takes.
export function tensor(type, numbers, shape) {
  const Kind = ARRAYS[type];
  if (!Kind) throw new Error(`the graph takes numbers of the type ${type}, which the page does not know`);
  if (type === "int64") return new ort.Tensor(type, BigInt64Array.from(numbers, BigInt), shape);
  if (type === "float16") {
    return new ort.Tensor(type, Uint16Array.from(numbers, (one) => (one ? ONE_IN_FLOAT16 : 0)), shape);
  }
  return new ort.Tensor(type, Kind.from(numbers), shape);
}

export const empty = (type, shape) => new ort.Tensor(type, new ARRAYS[type](shape.reduce((a, b) => a * b, 1)), shape);

export const floats = (numbers, shape) => new ort.Tensor("float32", Float32Array.from(numbers), shape);

// The numbers of an output as float32.
export function asFloats(output) {
  const data = output.data;
  if (data instanceof Float32Array) return data;
  if (!(data instanceof Uint16Array)) return Float32Array.from(data);
  return Float32Array.from(data, fromFloat16);
}

function fromFloat16(bits) {
  const sign = bits & 0x8000 ? -1 : 1;
  const [exponent, fraction] = [(bits >> 10) & 0x1f, bits & 0x3ff];
  if (exponent === 0) return sign * fraction * 2 ** -24;
  if (exponent === 0x1f) return fraction ? NaN : sign * Infinity;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}
