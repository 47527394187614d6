// The request field `img2img`: the picture on the board to start from, and the mask over it.

import { layers, open } from "./board.js";
import { changed, el, toggle } from "./dom.js";
import { control } from "./form.js";
import { Picture } from "./pictures.js";
import { plain } from "./schema.js";
import { state } from "./state.js";

let section = null; // one for as long as the page lasts: the board knows it

export const img2imgSection = () => (section ??= make());

function make() {
  const { properties, $defs } = state.describe.commands.generate.params;
  const { strength: schema } = plain(properties.img2img, $defs).properties;
  const master = toggle("", false, (on) => on && open("start"), "Use image to image");
  const mask = toggle("Keep what the mask leaves black", true, () => {});
  const strength = control({ ...schema, description: undefined }, "strength", $defs);
  const lacks = el("p", { class: "hint" }, "There is no start picture yet, so the request goes without.");
  const wrong = el("p", { class: "wrong", role: "alert", hidden: true });
  const buttons = el(
    "div",
    { class: "pair" },
    el("button", { type: "button", class: "plain", onclick: () => open("start") }, "Start picture"),
    el("button", { type: "button", class: "plain", onclick: () => open("mask") }, "Mask"),
  );
  const element = el("div", { class: "stack" }, lacks, buttons, strength.element, mask.element, wrong);

  layers.start.onChange(() => {
    lacks.hidden = !layers.start.isEmpty;
    if (!layers.start.isEmpty) master.input.checked = true;
  });
  return {
    element,
    toggle: master.element,
    read() {
      if (!master.input.checked || layers.start.isEmpty) return undefined;
      const usesMask = mask.input.checked && !layers.mask.isEmpty;
      const value = { image: layers.start, strength: strength.read() };
      if (usesMask) value.mask = layers.mask;
      if (value.strength === undefined) delete value.strength;
      return value;
    },
    write(value) {
      master.input.checked = Boolean(value);
      if (!value) return;
      strength.write(value.strength ?? undefined);
      const puts = [layers.start.put(Picture.known(value.image))];
      if (value.mask) puts.push(layers.mask.put(Picture.known(value.mask)));
      mask.input.checked = Boolean(value.mask);
      Promise.all(puts).then(() => changed(element));
    },
    fail([key, ...rest], message) {
      if (key === "strength") return strength.fail(rest, message);
      wrong.textContent = message;
      wrong.hidden = false;
      return true;
    },
    clear() {
      wrong.hidden = true;
      strength.clear();
    },
  };
}
