// How far the pictures in the making are: steps, time a step, place in the queue.

import { byId } from "./dom.js";
import { framed } from "./frames.js";
import { say } from "./said.js";

const bar = byId("progress");
const text = byId("progress-text");
const paint = framed((value, words) => {
  if (value === null) bar.removeAttribute("value");
  else bar.value = value;
  text.textContent = words;
});

const seconds = (value) => (value < 10 ? value.toFixed(1) : Math.round(value)) + " s";

export class Progress {
  #steps = []; // done, by picture
  #of = 1;
  #pace = null; // seconds a step, the latest counting most
  #seeds;

  constructor(seeds = []) {
    this.#seeds = seeds;
    this.#steps = seeds.map(() => 0);
  }

  queued({ position, starts_in }) {
    const when = starts_in === null ? "" : `, starts in ${seconds(starts_in)}`;
    paint(0, `Place ${position} in the queue${when}`);
    say(`Place ${position} in the queue`);
  }

  loading({ component, part, parts }) {
    paint(part / parts, `Loading ${component}, ${part} of ${parts}`);
    say("Loading the model");
  }

  started({ model, scheduler }) {
    paint(0, `${model}, ${scheduler}`);
  }

  paused() {
    paint(this.#share, "Paused");
  }

  step({ index, step, steps, seconds: took }) {
    this.#steps[index] = step;
    this.#of = steps;
    this.#pace = this.#pace === null ? took : this.#pace + 0.3 * (took - this.#pace);
    const done = Math.min(...this.#steps);
    paint(this.#share, `Step ${done} of ${steps} · ${Math.round(1000 * this.#pace)} ms a step`);
  }

  finished({ seconds: took, images }) {
    const seed = this.#seeds.length === 1 ? ` · seed ${this.#seeds[0]}` : ` · seeds from ${this.#seeds[0]}`;
    const pace = this.#pace === null ? "" : ` · ${Math.round(1000 * this.#pace)} ms a step`;
    paint(1, `Done in ${seconds(took)}${pace}${seed}`);
    say(images === 1 ? "The picture is finished" : `${images} pictures are finished`);
  }

  ended(words) {
    paint(0, words);
    say(words);
  }

  get #share() {
    return this.#steps.reduce((sum, step) => sum + step, 0) / (this.#of * Math.max(1, this.#steps.length));
  }
}
