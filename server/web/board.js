// The drawing board: an outline to follow, a picture to start from, and a mask over it.

import { Layer } from "./canvas.js";
import { byId, changed, el, plain, tool } from "./dom.js";
import { call } from "./connection.js";
import { hideProblem, showProblem, messageOf } from "./errors.js";
import { group } from "./form.js";
import { Picture, chosen } from "./pictures.js";
import { say } from "./said.js";
import { worded } from "./schema.js";
import { state } from "./state.js";

const NAMES = { outline: "Outline", start: "Start picture", mask: "Mask" };
const HINTS = {
  outline: "White lines, which a ControlNet follows. Draw, or upload a picture and make an outline of it.",
  start: "The picture to start from: upload one, or paint.",
  mask: "Paint over what is to be made anew; the rest is kept.",
};

export const layers = { outline: new Layer("#000"), start: new Layer("#fff"), mask: new Layer("#000") };

const section = byId("board");
const opener = byId("board-toggle");
let active = "outline";
let erases = false;
let drawer = null; // the pointer that draws: a second finger does not

// The tools.

const tabs = Object.entries(NAMES).map(([name, label]) =>
  el("button", { type: "button", class: "tab", "aria-pressed": "false", onclick: () => show(name), "data-layer": name }, label),
);
const pen = tool("pen", "Brush", () => setTool(false));
const eraser = tool("eraser", "Eraser", () => setTool(true));
const width = el("input", { type: "range", min: 1, max: 40, step: 1, value: 4, "aria-label": "Brush size", title: "Brush size" });
const colour = el("input", { type: "color", value: "#d03030", "aria-label": "Brush colour", title: "Brush colour" });
const fill = tool("image", "Fill with the colour", () => (layers.start.fill(colour.value), told()));
const undo = tool("undo", "Undo", () => (layers[active].undo(), told()));
const wipe = tool("trash", "Clear", () => (layers[active].clear(), told()));
const file = el("input", { type: "file", class: "hidden-text", accept: "image/png,image/jpeg,image/webp", tabindex: "-1", "aria-label": "Picture file" });
const upload = plain("upload", "Upload", () => file.click());
const hint = el("p", { class: "hint" });
const notice = el("div", { class: "notice" });
const easel = el("div", { class: "easel", tabindex: "0", role: "img" });
const preprocessing = el("div", { class: "preprocess" });

section.append(
  easel,
  el("div", { class: "tabs", role: "group", "aria-label": "Layer" }, ...tabs),
  el("div", { class: "tools", role: "toolbar", "aria-label": "Drawing" }, pen, eraser, width, colour, fill, undo, wipe, upload, file),
  hint,
  notice,
  preprocessing,
);
for (const [name, layer] of Object.entries(layers)) {
  layer.canvas.className = `layer ${name}`;
  easel.append(layer.canvas);
}

/** Where sections say what the active layer lacks. */
export const notices = notice;

export function show(name) {
  active = name;
  for (const tab of tabs) tab.setAttribute("aria-pressed", String(tab.dataset.layer === name));
  easel.dataset.layer = name;
  easel.setAttribute("aria-label", `${NAMES[name]}: draw here with a pointer, or upload a picture`);
  hint.textContent = HINTS[name];
  colour.hidden = fill.hidden = name !== "start";
  preprocessing.hidden = name !== "outline";
  notice.hidden = name !== "outline";
  update();
}

export function open(name = active) {
  setOpen(true);
  show(name);
}

/** Put a picture on a layer, as if by hand. */
export async function put(name, picture) {
  open(name);
  await layers[name].put(picture);
  told();
}

function setOpen(on) {
  section.hidden = !on;
  opener.setAttribute("aria-pressed", String(on));
}

function setTool(toErase) {
  erases = toErase;
  update();
}

function update() {
  pen.setAttribute("aria-pressed", String(!erases));
  eraser.setAttribute("aria-pressed", String(erases));
  undo.disabled = !layers[active].canUndo;
  wipe.disabled = layers[active].isEmpty;
}

/** The drawing has changed, so the request has. */
function told() {
  update();
  changed(byId("sections"));
}

opener.addEventListener("click", () => setOpen(section.hidden));
file.addEventListener("change", async () => {
  const picture = await chosen(file.files[0]);
  file.value = "";
  if (!picture) return;
  try {
    await put(active, picture);
    hideProblem();
    say("The picture is on the board.");
  } catch {
    showProblem("This file is no picture that the page can show; PNG, JPEG and WebP are.");
  }
});

// Drawing.

function point(event) {
  const place = easel.getBoundingClientRect();
  const { width: w, height: h } = layers[active].canvas;
  return { x: ((event.clientX - place.left) / place.width) * w, y: ((event.clientY - place.top) / place.height) * h };
}

easel.addEventListener("pointerdown", (event) => {
  if (event.button !== 0 || drawer !== null) return;
  drawer = event.pointerId;
  event.preventDefault();
  easel.focus({ preventScroll: true });
  easel.setPointerCapture(event.pointerId);
  const white = active === "start" ? colour.value : "#fff";
  layers[active].begin(point(event), { width: Number(width.value), colour: white, erases });
  told();
});
easel.addEventListener("pointermove", (event) => {
  if (event.pointerId !== drawer || !layers[active].isDrawing) return;
  for (const part of event.getCoalescedEvents?.() ?? [event]) layers[active].move(point(part));
  told();
});
function lift(event) {
  if (event.pointerId !== drawer) return;
  drawer = null;
  layers[active].end();
}
for (const name of ["pointerup", "pointercancel"]) easel.addEventListener(name, lift);
easel.addEventListener("keydown", (event) => {
  if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "z") undo.click();
  else if (event.key === "Delete") wipe.click();
  else return;
  event.preventDefault();
});

state.watch("size", ({ width: w, height: h }) => {
  easel.style.aspectRatio = `${w} / ${h}`;
  width.max = Math.max(8, Math.round(Math.max(w, h) / 4));
  width.value = Math.max(1, Math.round(Math.max(w, h) / 32));
});

// Control images of pictures.

function offerPreprocessors(describe) {
  const known = Object.entries(describe?.preprocessors ?? {});
  preprocessing.replaceChildren();
  if (known.length === 0) return;
  const name = el("select", { "aria-label": "Preprocessor" }, ...known.map(([one]) => el("option", { value: one }, worded(one))));
  const options = el("div", { class: "options", hidden: true });
  const more = el("button", { type: "button", class: "plain", "aria-expanded": "false", "aria-label": "Options of the preprocessor" }, "Options");
  const apply = el("button", { type: "button", class: "plain" }, "Make outline");
  const wrong = el("p", { class: "wrong", role: "alert", hidden: true });
  let form;
  const choose = () => {
    form = group(describe.preprocessors[name.value]);
    options.replaceChildren(form.element);
    more.disabled = form.element.childElementCount === 0;
  };
  name.addEventListener("change", choose);
  more.addEventListener("click", () => {
    options.hidden = !options.hidden;
    more.setAttribute("aria-expanded", String(!options.hidden));
  });
  apply.addEventListener("click", () => preprocess(name.value, form, wrong));
  options.addEventListener("input", (event) => event.stopPropagation()); // no part of the request
  choose();
  const row = el("div", { class: "tools" }, name, more, apply);
  preprocessing.append(row, options, wrong);
}

async function preprocess(name, form, wrong) {
  wrong.hidden = true;
  form.clear();
  try {
    if (layers.outline.isEmpty) throw new Error("Upload a picture first, or draw one.");
    const image = await layers.outline.reference();
    const made = await call("controlnet.preprocess", { image, name, options: form.read() });
    const blob = new Blob([made.image.data], { type: "image/png" });
    await layers.outline.put(Picture.there(blob, made.image_id));
    told();
  } catch (error) {
    const placed = (error.details ?? []).filter?.(({ path, message }) => path?.[0] === "options" && form.fail(path.slice(1), message));
    wrong.textContent = messageOf(error);
    wrong.hidden = placed?.length > 0;
  }
}

state.watch("describe", offerPreprocessors);
show(active);
