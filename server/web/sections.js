// The parts of the request form that plugins bring: their own where we have made some, generated ones for all others.

import { byId, disclose, el, icon, newId, toggle } from "./dom.js";
import { controlnetSection } from "./controlnet.js";
import { control } from "./form.js";
import { img2imgSection } from "./img2img.js";
import { loraSection } from "./loras.js";
import { names } from "./core.js";
import { plain, worded } from "./schema.js";
import { state } from "./state.js";

const DEDICATED = { controlnet: controlnetSection, img2img: img2imgSection, lora: loraSection };
const TITLES = { controlnet: "ControlNet", img2img: "Image to image", lora: "LoRAs", clip_skip: "Clip skip" };
const OURS = new Set([...names, "stream", "slot", "min_steps_shown", "output_type", "priority", "graph_part"]); // the page's own business, or the host's
const SWITCHED = new Set(["object", "array", "boolean"]); // of these there is no empty one that means none
const shown = new Map(); // field -> {section, panel, signature}

export const sections = {
  read() {
    const values = [...shown].map(([name, { section }]) => [name, section.read()]);
    return Object.fromEntries(values.filter(([, value]) => value !== undefined));
  },
  write(request) {
    for (const [name, { section, panel }] of shown) {
      section.write(request[name]);
      if (section.read() !== undefined) panel.open();
    }
  },
  fail([name, ...rest], message) {
    const place = shown.get(name);
    if (!place?.section.fail(rest, message)) return false;
    place.panel.open();
    return true;
  },
  clear: () => shown.forEach(({ section }) => section.clear()),
};

/** A part of the form with a title that opens and closes it, and a switch where it has one. */
function panelOf(name, section) {
  const body = el("div", { class: "panel-body", id: newId("section"), hidden: true }, section.element);
  const button = el(
    "button",
    { type: "button", class: "disclosure", "aria-expanded": "false", "aria-controls": body.id, onclick: () => disclose(button, body) },
    icon("chevron"),
    TITLES[name] ?? worded(name),
  );
  const head = el("div", { class: "panel-head" }, el("h2", {}, button), section.toggle ?? null);
  const element = el("section", { class: "panel", "data-field": name, "aria-label": TITLES[name] ?? worded(name) }, head, body);
  return { element, open: () => disclose(button, body, true) };
}

/** A field that we know nothing of but its schema. */
function generated(name, schema, defs) {
  const kind = plain(schema, defs);
  if (!kind.nullable || !SWITCHED.has(kind.type)) return control(schema, name, defs);
  const inner = control({ ...kind, default: kind.default ?? undefined }, name, defs, true, true);
  const { element, input } = toggle("", false, (on) => on && shown.get(name)?.panel.open(), `Use ${TITLES[name] ?? worded(name)}`);
  const hint = kind.description ? el("p", { class: "hint" }, kind.description) : null;
  return {
    element: el("div", { class: "stack" }, hint, inner.element),
    toggle: element,
    read: () => (input.checked ? inner.read() : undefined),
    write(value) {
      input.checked = value !== undefined && value !== null;
      inner.write(value ?? undefined);
    },
    fail: inner.fail,
    clear: inner.clear,
  };
}

/** Whether a field can be used now: its plugin may rest. */
function works(field, describe) {
  const plugin = describe.fields[field];
  if (!plugin) return true;
  return state.plugins.find((row) => row.name === plugin)?.state !== "disabled";
}

/** Follow what the host takes; controls that are still right keep what is in them. */
function update() {
  const { describe } = state;
  if (!describe) return;
  const { properties, $defs = {} } = describe.commands.generate.params;
  const wanted = Object.keys(properties).filter((name) => !OURS.has(name) && works(name, describe));
  const order = [...Object.keys(DEDICATED), ...wanted];
  wanted.sort((one, other) => order.indexOf(one) - order.indexOf(other));
  for (const [name, { panel }] of shown) {
    if (wanted.includes(name)) continue;
    panel.element.remove();
    shown.delete(name);
  }
  wanted.forEach((name, place) => {
    const signature = JSON.stringify(referred(properties[name], $defs));
    const before = shown.get(name);
    if (before?.signature !== signature) {
      const section = DEDICATED[name]?.() ?? generated(name, properties[name], $defs);
      if (before && !DEDICATED[name]) section.write(before.section.read());
      before?.panel.element.remove();
      shown.set(name, { section, panel: panelOf(name, section), signature });
    }
    const { element } = shown.get(name).panel;
    const there = byId("sections").children[place];
    if (there !== element) byId("sections").insertBefore(element, there ?? null); // what stays keeps the focus
  });
}

/** A schema with all that it refers to. */
function referred(schema, defs) {
  const found = {};
  const look = (part) => {
    if (part === null || typeof part !== "object") return;
    const name = part.$ref?.split("/").pop();
    if (name && !(name in found)) look((found[name] = defs[name]));
    Object.values(part).forEach(look);
  };
  look(schema);
  return { schema, found };
}

state.watch("describe", update);
state.watch("plugins", update);
