// Pictures that requests name. Each is sent once a session, when it is first needed.

import { sessionName, upload } from "./connection.js";

const MOST_KNOWN = 200;
const known = new Map(); // id -> Picture; the longest unused first

export class Picture {
  #session = null;

  /** `blob` may be null: a picture that the host has, and this page does not. */
  constructor(blob, id = null) {
    this.blob = blob;
    this.id = id;
    if (id) remember(this);
  }

  /** The one that the host knows by this id. */
  static known(id) {
    return known.get(id) ?? new Picture(null, id);
  }

  /** One that the host has just made, or been sent in this session. */
  static there(blob, id) {
    const picture = new Picture(blob, id);
    picture.#session = sessionName();
    return picture;
  }

  /** Its id, as requests name it. */
  async reference() {
    if (this.blob && this.#session !== sessionName()) {
      const session = sessionName();
      this.id = await upload(this.blob);
      this.#session = session;
      remember(this);
    }
    return this.id;
  }

  static forgetAll() {
    for (const picture of known.values()) picture.#session = null;
  }
}

/** The host has forgotten some, and says not which: send all that are needed again. */
export const sendAgain = () => Picture.forgetAll();

/** A file that a person chose. */
export async function chosen(file) {
  return file ? new Picture(file) : undefined;
}

/** The same value with pictures' ids in place of the pictures. */
export async function resolved(value) {
  if (typeof value?.reference === "function") return value.reference();
  if (Array.isArray(value)) return Promise.all(value.map(resolved));
  if (value === null || typeof value !== "object" || ArrayBuffer.isView(value)) return value;
  const entries = Object.entries(value).map(async ([name, part]) => [name, await resolved(part)]);
  return Object.fromEntries(await Promise.all(entries));
}

function remember(picture) {
  known.delete(picture.id);
  known.set(picture.id, picture);
  if (known.size > MOST_KNOWN) known.delete(known.keys().next().value);
}
