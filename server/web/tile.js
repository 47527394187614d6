// One picture on the page. Files are decoded off the main thread; while one is, only the newest of the others is kept.

import { el } from "./dom.js";

export class Tile {
  canvas = el("canvas", { width: 1, height: 1, role: "img" });

  #drawing = this.canvas.getContext("bitmaprenderer");
  #next = null;
  #isBusy = false;

  /** Show a file; the promise is kept once it, or a newer one, can be seen. `of` says of which request it is. */
  async show(blob, of = 0) {
    this.#next = { blob, of };
    if (this.#isBusy) return;
    this.#isBusy = true;
    try {
      while (this.#next) {
        const now = this.#next;
        this.#next = null;
        const bitmap = await createImageBitmap(now.blob);
        await new Promise(requestAnimationFrame);
        if (this.canvas.width !== bitmap.width) this.canvas.width = bitmap.width;
        if (this.canvas.height !== bitmap.height) this.canvas.height = bitmap.height;
        this.#drawing.transferFromImageBitmap(bitmap);
        this.canvas.dataset.of = now.of;
      }
    } finally {
      this.#isBusy = false;
    }
  }

  set size({ width, height }) {
    this.canvas.style.aspectRatio = `${width} / ${height}`;
  }

  set label(text) {
    this.canvas.setAttribute("aria-label", text);
  }
}
