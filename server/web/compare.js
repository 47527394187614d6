// Two pictures one over the other, and a slider between them.

import { el } from "./dom.js";
import { Tile } from "./tile.js";

/** The element for two entries; it is filled as their files come. */
export function comparison(one, other) {
  const [left, right] = [one, other].map((entry, place) => {
    const tile = new Tile();
    tile.size = one;
    tile.label = `${place === 0 ? "Left" : "Right"}: ${entry.title}`;
    entry.blob().then((blob) => tile.show(blob), () => {});
    return tile;
  });
  right.canvas.classList.add("over");
  const slider = el("input", { type: "range", min: 0, max: 100, step: 0.5, value: 50, "aria-label": "Show more of the left or of the right picture" });
  const element = el("div", { class: "compare" }, left.canvas, right.canvas, slider);
  const move = () => element.style.setProperty("--split", `${slider.value}%`);
  slider.addEventListener("input", (event) => {
    event.stopPropagation();
    move();
  });
  move();
  return element;
}
