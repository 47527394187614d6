// Pictures and tensors as what browsers work with.

/** An object URL of a picture `{format, data}`; `URL.revokeObjectURL` frees it. */
export function imageUrl(image) {
  return URL.createObjectURL(new Blob([image.data], { type: `image/${image.format}` }));
}

/** The values of a tensor `{dtype, data}`, row by row. */
export function toFloat32({ dtype, data }) {
  if (dtype !== "float32" && dtype !== "float16") throw new TypeError(`a tensor is float32 or float16, got ${dtype}`);
  const view = new DataView(data.buffer, data.byteOffset, data.byteLength);
  if (dtype === "float32") {
    return Float32Array.from({ length: data.length / 4 }, (_, index) => view.getFloat32(index * 4, true));
  }
  return Float32Array.from({ length: data.length / 2 }, (_, index) => half(view.getUint16(index * 2, true)));
}

function half(bits) {
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 1023;
  let size = (1 + fraction / 1024) * 2 ** (exponent - 15);
  if (exponent === 0) size = fraction * 2 ** -24;
  if (exponent === 31) size = fraction ? NaN : Infinity;
  return bits & 0x8000 ? -size : size;
}
