// One finished picture with its request: of this page, or kept by the host.

import { call } from "./connection.js";

const MOST_FILES = 100; // kept of those that the host has as well
const kept = new Set(); // entries, the longest unused first

export class Entry {
  #blob;
  #fetching = null;

  /** `id` is its name in the host's results, null where those do not have it. */
  constructor({ id = null, blob = null, prompt, seed, width, height, created, request, imageId = null }) {
    Object.assign(this, { id, prompt, seed, width, height, created, request, imageId });
    this.#blob = blob;
    if (id && blob) this.#keep();
  }

  /** Its file. */
  async blob() {
    if (!this.#blob) {
      this.#fetching ??= this.#fetch().finally(() => (this.#fetching = null));
      this.#blob = await this.#fetching;
    }
    if (this.id) this.#keep();
    return this.#blob;
  }

  async #fetch() {
    const { image } = await call("results.get", { id: this.id });
    return new Blob([image.data], { type: "image/png" });
  }

  #keep() {
    kept.delete(this);
    kept.add(this);
    if (kept.size <= MOST_FILES) return;
    const [oldest] = kept;
    kept.delete(oldest);
    oldest.#blob = null;
  }

  get title() {
    return `${this.prompt || "no prompt"}, seed ${this.seed}`;
  }

  get fileName() {
    const words = this.prompt.toLowerCase().replaceAll(/[^a-z0-9]+/g, "-").slice(0, 60).replaceAll(/^-|-$/g, "");
    return `${words || "picture"}-${this.seed}.png`;
  }
}
