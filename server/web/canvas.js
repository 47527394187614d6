// One layer that is drawn on: strokes, pictures, undo; and the file that it is for the host.

import { Picture } from "./pictures.js";
import { state } from "./state.js";

const MOST_UNDO = 30;
const MOST_UNDO_PIXELS = 64 << 20; // 256 MiB

export class Layer {
  canvas = document.createElement("canvas");
  isEmpty = true;

  #ground; // colour below what is drawn, in the file
  #drawing;
  #undo = []; // what there was before, the newest last
  #stroke = null;
  #unsized = null; // the drawing as it was before it was brought to another size
  #picture = null; // what is drawn now, as a file
  #listeners = [];

  constructor(ground) {
    this.#ground = ground;
    this.#drawing = this.canvas.getContext("2d", { willReadFrequently: true });
    state.watch("size", (size) => this.#resize(size));
  }

  /** Call `listener` after each change by hand. */
  onChange(listener) {
    this.#listeners.push(listener);
  }

  /** Begin a stroke. `pen`: width in pixels, colour, and whether it erases. */
  begin(point, pen) {
    this.#keep();
    this.#stroke = { ...pen, from: point };
    this.move(point);
  }

  move(point) {
    const { from, width, colour, erases } = this.#stroke;
    const drawing = this.#drawing;
    drawing.globalCompositeOperation = erases ? "destination-out" : "source-over";
    drawing.strokeStyle = colour;
    drawing.lineWidth = width;
    drawing.lineCap = drawing.lineJoin = "round";
    drawing.beginPath();
    drawing.moveTo(from.x, from.y);
    const isDot = point.x === from.x && point.y === from.y; // a line without length would not be drawn
    drawing.lineTo(point.x + (isDot ? 0.01 : 0), point.y);
    drawing.stroke();
    drawing.globalCompositeOperation = "source-over";
    this.#stroke.from = point;
    if (!erases) this.isEmpty = false;
    this.#changed();
  }

  end() {
    this.#stroke = null;
  }

  get isDrawing() {
    return this.#stroke !== null;
  }

  fill(colour) {
    this.#keep();
    this.#drawing.fillStyle = colour;
    this.#drawing.fillRect(0, 0, this.canvas.width, this.canvas.height);
    this.isEmpty = false;
    this.#changed();
  }

  clear() {
    if (this.isEmpty) return;
    this.#keep();
    this.#wipe();
    this.isEmpty = true;
    this.#changed();
  }

  undo() {
    const before = this.#undo.pop();
    if (!before) return;
    this.#wipe();
    this.#drawing.drawImage(before.copy, 0, 0, this.canvas.width, this.canvas.height);
    this.isEmpty = before.isEmpty;
    this.#changed();
    this.#picture = before.picture;
  }

  get canUndo() {
    return this.#undo.length > 0;
  }

  /** Show a picture in place of all; one without a file is the host's alone, and cannot be shown. */
  async put(picture) {
    const bitmap = picture.blob && (await createImageBitmap(picture.blob));
    this.#keep();
    this.#wipe();
    if (bitmap) {
      const { width, height } = this.canvas;
      const scale = Math.max(width / bitmap.width, height / bitmap.height); // as `fill` of the host does
      const [w, h] = [bitmap.width * scale, bitmap.height * scale];
      this.#drawing.drawImage(bitmap, (width - w) / 2, (height - h) / 2, w, h);
      bitmap.close();
    }
    this.isEmpty = false;
    this.#changed();
    this.#picture = picture; // the very file, until something is drawn over it
  }

  /** Its id at the host; for `resolved`. */
  async reference() {
    this.#picture ??= this.#file();
    return (await this.#picture).reference();
  }

  async #file() {
    const { width, height } = this.canvas;
    const whole = new OffscreenCanvas(width, height);
    const drawing = whole.getContext("2d");
    drawing.fillStyle = this.#ground;
    drawing.fillRect(0, 0, width, height);
    drawing.drawImage(this.canvas, 0, 0);
    return new Picture(await whole.convertToBlob({ type: "image/png" }));
  }

  #copy() {
    const copy = new OffscreenCanvas(this.canvas.width, this.canvas.height);
    copy.getContext("2d").drawImage(this.canvas, 0, 0);
    return copy;
  }

  #keep() {
    this.#undo.push({ copy: this.#copy(), isEmpty: this.isEmpty, picture: this.#picture });
    const most = Math.min(MOST_UNDO, Math.max(1, MOST_UNDO_PIXELS / (this.canvas.width * this.canvas.height)));
    while (this.#undo.length > most) this.#undo.shift();
  }

  #wipe() {
    this.#drawing.clearRect(0, 0, this.canvas.width, this.canvas.height);
  }

  #changed() {
    this.#picture = this.#unsized = null;
    for (const listener of this.#listeners) listener();
  }

  #resize({ width, height }) {
    if (!this.isEmpty) this.#unsized ??= this.#copy(); // on the way from 128 to 640 the size is 6, and then 64
    Object.assign(this.canvas, { width, height });
    if (this.#unsized) this.#drawing.drawImage(this.#unsized, 0, 0, width, height);
    if (!(this.#picture instanceof Picture)) this.#picture = null; // the host brings a whole file to size by itself
  }
}
