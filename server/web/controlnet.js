// The request field `controlnet`: which of the loaded ControlNets follow the outline on the board, and how much.

import { layers, notices, open, show } from "./board.js";
import { call } from "./connection.js";
import { changed, el, toggle, tool } from "./dom.js";
import { control, shortly } from "./form.js";
import { fitting, load, loaded, loader } from "./loaded.js";
import { Picture } from "./pictures.js";
import { state } from "./state.js";

const EXAMPLES = ["controlnets/emoji-outline", "control-loras/emoji-outline.safetensors"];
const SHARED = ["control_guidance_start", "control_guidance_end", "guess_mode"];
const SCALE = "controlnet_conditioning_scale";

let section = null; // one for as long as the page lasts: the board and the lists know it

export const controlnetSection = () => (section ??= make());

function make() {
  const { properties, $defs } = useSchema();
  const rows = new Map(); // name -> {element, input, scale}
  const master = toggle("", false, (on) => on && open("outline"), "Use ControlNet");
  const list = el("div", { class: "uses" });
  const shared = Object.fromEntries(SHARED.filter((name) => properties[name]).map((name) => [name, control(properties[name], name.replace("control_", ""), $defs)]));
  const wrong = el("p", { class: "wrong", role: "alert", hidden: true });
  const lacks = el("p", { class: "hint" });
  const draw = el("button", { type: "button", class: "plain", onclick: () => open("outline") }, "Open the board");
  const loading = () => loader("Load a ControlNet", EXAMPLES, loadPath);
  const element = el("div", { class: "stack" }, lacks, list, draw, ...Object.values(shared).map((one) => one.element), loading(), wrong);

  async function loadPath(path) {
    const row = await load("controlnet.load", path.endsWith(".safetensors") ? { lora_weights_path: path } : { path });
    wanted.add(row.name);
    master.input.checked ||= !layers.outline.isEmpty; // who draws wants it followed
    render();
    changed(element);
  }

  const wanted = new Set(); // names that are switched on, also before the list has them

  function render() {
    const there = fitting("controlnets");
    for (const [name, row] of rows) {
      if (there.some((one) => one.name === name)) continue;
      row.element.remove();
      rows.delete(name);
    }
    if (rows.size === 0 && there.length === 1) wanted.add(there[0].name);
    for (const { name } of there) {
      if (!rows.has(name)) add(name);
      rows.get(name).input.checked = wanted.has(name);
    }
    update();
  }

  function add(name) {
    const { element: label, input } = toggle(name, wanted.has(name), (on) => (on ? wanted.add(name) : wanted.delete(name)));
    const scale = shortly(control({ ...properties[SCALE], maximum: 2 }, "scale", $defs), "Scale", `${name} scale`);
    const unload = tool("close", `Unload ${name}`, () => call("controlnet.unload", { name, when_free: true }).catch(say));
    const row = el("div", { class: "use" }, el("div", { class: "use-head" }, label, unload), scale.element);
    rows.set(name, { element: row, input, scale });
    list.append(row);
  }

  function say(error) {
    wrong.textContent = error.message;
    wrong.hidden = false;
  }

  /** What is missing for a picture that follows the outline. */
  function update() {
    const none = rows.size === 0;
    lacks.textContent = none ? "No ControlNet is loaded for this model yet." : layers.outline.isEmpty ? "Nothing is drawn yet, so the request goes without." : "";
    lacks.hidden = !lacks.textContent;
    const isAsked = none && !layers.outline.isEmpty;
    if (isAsked && !notices.hasChildNodes()) notices.append(el("p", {}, "Load a ControlNet, so that pictures follow the outline."), loading());
    if (!isAsked) notices.replaceChildren();
  }

  layers.outline.onChange(() => {
    if (!layers.outline.isEmpty && rows.size > 0) master.input.checked = true;
    update();
  });
  const self = {
    element,
    toggle: master.element,
    read() {
      if (!master.input.checked || layers.outline.isEmpty) return undefined;
      const common = Object.fromEntries(SHARED.map((name) => [name, shared[name]?.read()]).filter(([, value]) => value !== undefined));
      const uses = [...rows].filter(([name]) => wanted.has(name));
      if (uses.length === 0) return undefined;
      return uses.map(([name, { scale }]) => ({ name, image: layers.outline, [SCALE]: scale.read(), ...common }));
    },
    write(uses) {
      master.input.checked = Boolean(uses?.length);
      if (!master.input.checked) return;
      wanted.clear();
      for (const { name, [SCALE]: scale, image } of uses) {
        if (name) wanted.add(name);
        rows.get(name)?.scale.write(scale);
        if (image === uses[0].image) layers.outline.put(Picture.known(image)).then(() => (show("outline"), changed(element)));
      }
      for (const name of SHARED) shared[name]?.write(uses[0][name]);
      render();
    },
    fail([place, key, ...rest], message) {
      const used = [...rows].filter(([name]) => wanted.has(name))[place]?.[1];
      if (key === SCALE && used) return used.scale.fail(rest, message);
      if (shared[key]) return shared[key].fail(rest, message);
      say({ message });
      return true;
    },
    clear() {
      wrong.hidden = true;
      for (const { scale } of rows.values()) scale.clear();
      for (const one of Object.values(shared)) one.clear();
    },
  };
  loaded.watch("controlnets", render);
  state.watch("model", render);
  return self;
}

/** The schema of one use. */
function useSchema() {
  const { properties, $defs } = state.describe.commands.generate.params;
  const uses = $defs[properties.controlnet.anyOf[0].$ref.split("/").pop()];
  return { ...$defs[uses.items.$ref.split("/").pop()], $defs };
}
