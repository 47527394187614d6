// A small chart of the latest values.

import { framed } from "./frames.js";

const KEPT = 60;

export class Chart {
  #canvas;
  #values = [];
  #top; // the value at the upper edge; the largest one where it is not said
  #paint = framed(() => this.#draw());

  constructor(canvas, top = null) {
    this.#canvas = canvas;
    this.#top = top;
  }

  add(value) {
    this.#values.push(value ?? 0);
    if (this.#values.length > KEPT) this.#values.shift();
    this.#paint();
  }

  #draw() {
    const canvas = this.#canvas;
    const ratio = devicePixelRatio || 1;
    const [width, height] = [Math.round(canvas.clientWidth * ratio), Math.round(canvas.clientHeight * ratio)];
    if (width === 0) return;
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    const drawing = canvas.getContext("2d");
    const { color, borderTopColor } = getComputedStyle(canvas);
    const top = this.#top ?? Math.max(...this.#values, 1e-9) * 1.15;
    const pad = 1.5 * ratio;
    const x = (place) => width - ((this.#values.length - 1 - place) * width) / (KEPT - 1);
    const y = (value) => height - pad - (Math.min(value, top) / top) * (height - 2 * pad);
    drawing.clearRect(0, 0, width, height);
    drawing.beginPath();
    this.#values.forEach((value, place) => drawing.lineTo(x(place), y(value)));
    drawing.strokeStyle = color;
    drawing.lineWidth = 1.5 * ratio;
    drawing.lineJoin = "round";
    drawing.stroke();
    drawing.lineTo(width, height);
    drawing.lineTo(x(0), height);
    drawing.fillStyle = borderTopColor;
    drawing.fill();
  }
}
