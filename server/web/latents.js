// The raw latents, channel by channel, in shades of gray.

import { toFloat32 } from "latentwire";

import { byId, changed, el } from "./dom.js";
import { framed } from "./frames.js";
import { state } from "./state.js";

const view = byId("latents");
const button = byId("latents-toggle");

button.addEventListener("click", () => {
  state.latents = !state.latents;
  changed(byId("sections"));
});
state.watch("latents", (on) => {
  view.hidden = !on;
  button.setAttribute("aria-pressed", String(on));
  if (on && !view.hasChildNodes()) view.append(el("p", { class: "quiet" }, "Latents of the next picture appear here."));
});

/** What to ask the host for. */
export const latentsWanted = () => (state.latents ? { dtype: "float16", every: 1 } : null);

export const showLatents = framed((tensor) => {
  const [channels, height, width] = tensor.shape;
  const values = toFloat32(tensor);
  if (view.querySelectorAll("canvas").length !== channels) {
    const canvases = Array.from({ length: channels }, (_, channel) => el("canvas", { role: "img", "aria-label": `Channel ${channel + 1}` }));
    view.replaceChildren(...canvases);
  }
  view.querySelectorAll("canvas").forEach((canvas, channel) => {
    const part = values.subarray(channel * height * width, (channel + 1) * height * width);
    paintChannel(canvas, part, width, height);
  });
});

function paintChannel(canvas, values, width, height) {
  let [low, high] = [Infinity, -Infinity];
  for (const value of values) {
    if (value < low) low = value;
    if (value > high) high = value;
  }
  const shades = new ImageData(width, height);
  const scale = 255 / (high - low || 1);
  values.forEach((value, place) => {
    const shade = (value - low) * scale;
    shades.data.set([shade, shade, shade, 255], 4 * place);
  });
  Object.assign(canvas, { width, height });
  canvas.getContext("2d").putImageData(shades, 0, 0);
}
