// Messages as frames: one msgpack map each.

import { decode as unpack, encode as pack } from "@msgpack/msgpack";

/** A message as a frame. Entries that are undefined are left out, and a BigInt is a whole number of 64 bits. */
export function encode(message) {
  return pack(message, { useBigInt64: true, ignoreUndefined: true });
}

/** A frame as a message. A whole number is a Number where that holds it exactly, else a BigInt. */
export function decode(frame) {
  return narrow(unpack(frame, { useBigInt64: true }));
}

function narrow(value) {
  if (typeof value === "bigint") {
    const number = Number(value);
    return Number.isSafeInteger(number) ? number : value;
  }
  if (value !== null && typeof value === "object" && !ArrayBuffer.isView(value)) {
    for (const key of Object.keys(value)) value[key] = narrow(value[key]);
  }
  return value;
}
