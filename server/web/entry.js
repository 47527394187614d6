// One finished picture with its request: of this page, or kept by the host.

import { call } from "./connection.js";

export class Entry {
  #blob;
  #fetching = null;

  /** `id` is its name in the host's results, null where those do not have it. */
  constructor({ id = null, blob = null, prompt, seed, width, height, created, request, imageId = null }) {
    Object.assign(this, { id, prompt, seed, width, height, created, request, imageId });
    this.#blob = blob;
  }

  /** Its file. */
  async blob() {
    this.#fetching ??= this.#fetch();
    return this.#fetching;
  }

  async #fetch() {
    if (this.#blob) return this.#blob;
    try {
      const { image } = await call("results.get", { id: this.id });
      return new Blob([image.data], { type: "image/png" });
    } catch (error) {
      this.#fetching = null;
      throw error;
    }
  }

  get title() {
    return `${this.prompt || "no prompt"}, seed ${this.seed}`;
  }

  get fileName() {
    const words = this.prompt.toLowerCase().replaceAll(/[^a-z0-9]+/g, "-").slice(0, 60).replaceAll(/^-|-$/g, "");
    return `${words || "picture"}-${this.seed}.png`;
  }
}
