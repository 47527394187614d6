// The request field `lora`: the loaded LoRAs, each with a weight.

import { call } from "./connection.js";
import { changed, el, toggle, tool } from "./dom.js";
import { control, shortly } from "./form.js";
import { fitting, load, loaded, loader } from "./loaded.js";
import { state } from "./state.js";

const EXAMPLES = ["loras/emoji-pixel-art", "loras/emoji-pencil"];
const WEIGHT = { type: "number", minimum: -2, maximum: 2, default: 1 }; // of the slider; the input takes more

let section = null; // one for as long as the page lasts: the list knows it

export const loraSection = () => (section ??= make());

function make() {
  const rows = new Map(); // name -> {element, input, weight}
  const wanted = new Set();
  const list = el("div", { class: "uses" });
  const none = el("p", { class: "hint" }, "No LoRA is loaded for this model yet.");
  const wrong = el("p", { class: "wrong", role: "alert", hidden: true });
  const element = el("div", { class: "stack" }, none, list, loader("Load a LoRA", EXAMPLES, loadPath), wrong);

  async function loadPath(path) {
    const row = await load("lora.load", { path });
    wanted.add(row.name);
    render();
    changed(element);
  }

  function render() {
    const there = fitting("adapters");
    for (const [name, row] of rows) {
      if (there.some((one) => one.name === name)) continue;
      row.element.remove();
      rows.delete(name);
    }
    for (const { name } of there) {
      if (!rows.has(name)) add(name);
      rows.get(name).input.checked = wanted.has(name);
    }
    none.hidden = rows.size > 0;
  }

  function add(name) {
    const { element: label, input } = toggle(name, wanted.has(name), (on) => (on ? wanted.add(name) : wanted.delete(name)));
    const weight = shortly(control(WEIGHT, "weight"), "Weight", `${name} weight`);
    weight.element.addEventListener("input", () => {
      input.checked = true; // who moves it wants it
      wanted.add(name);
    });
    const unload = tool("close", `Unload ${name}`, () => call("lora.unload", { name, when_free: true }).catch(({ message }) => self.fail([], message)));
    const row = el("div", { class: "use" }, el("div", { class: "use-head" }, label, unload), weight.element);
    rows.set(name, { element: row, input, weight });
    list.append(row);
  }

  const used = () => [...rows].filter(([name]) => wanted.has(name));
  const self = {
    element,
    read() {
      const uses = used().map(([name, { weight }]) => ({ name, weight: weight.read() ?? WEIGHT.default }));
      return uses.length > 0 ? uses : undefined;
    },
    write(uses) {
      wanted.clear();
      for (const { name, weight } of uses ?? []) {
        wanted.add(name);
        rows.get(name)?.weight.write(weight);
      }
      render();
    },
    fail([place, key, ...rest], message) {
      const row = used()[place]?.[1];
      if (key === "weight" && row) return row.weight.fail(rest, message);
      wrong.textContent = message;
      wrong.hidden = false;
      return true;
    },
    clear() {
      wrong.hidden = true;
      for (const { weight } of rows.values()) weight.clear();
    },
  };
  loaded.watch("adapters", render);
  state.watch("model", render);
  return self;
}
