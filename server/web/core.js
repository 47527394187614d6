// The controls that every request has: prompts, sampling, size, seed.

import { byId, changed, el } from "./dom.js";
import { joined, marking, valueOf } from "./form.js";
import { bounds, plain } from "./schema.js";
import { state } from "./state.js";

const NUMBERS = ["num_inference_steps", "guidance_scale", "num_images", "width", "height"];
const LARGEST_NEW_SEED = 2 ** 32;
const LARGEST_SEED = 2n ** 63n - 1n; // of more, the client would send the lower bits
const seed = byId("seed");
const lock = byId("seed-lock");
const controls = new Map();
const followers = [];

/** The names of the fields that are controlled here. */
export const names = ["prompt", "negative_prompt", "model", "scheduler", "mode", "seed", ...NUMBERS];

export const core = {
  read() {
    const values = [...controls].map(([name, control]) => [name, control.read()]);
    return Object.fromEntries(values.filter(([, value]) => value !== undefined));
  },
  write(request) {
    for (const [name, control] of controls) control.write(request[name]);
    setLock(request.seed !== undefined);
    for (const follow of followers) follow();
    sized();
  },
  fail: ([name, ...rest], message) => controls.get(name)?.fail(rest, message) ?? false,
  clear: () => controls.forEach((control) => control.clear()),
};

/** What was used for a seed; the next request has another one, unless it is kept. */
export function showSeed(used) {
  seed.value = String(used);
}

function add(name, read, write) {
  const input = byId(name);
  const wrong = el("p", { class: "wrong", id: `${name}-wrong`, hidden: true });
  input.closest(".field").append(wrong);
  controls.set(name, { read, write, ...marking(input, wrong) });
}

for (const name of ["prompt", "negative_prompt", "scheduler", "mode"]) {
  const input = byId(name);
  add(
    name,
    () => (input.value === "" && name !== "prompt" ? undefined : input.value),
    (value) => (input.value = value ?? ""),
  );
}
for (const name of NUMBERS) {
  const input = byId(name);
  const slider = byId(`${name}-slider`);
  add(name, () => valueOf(input), (value) => (input.value = value ?? ""));
  if (slider) followers.push(joined(input, slider));
}
add("seed", readSeed, (value) => (seed.value = Array.isArray(value) ? value[0] : (value ?? "")));

/** The seed that is kept, or in live mode the one that is there: a picture that follows its controls keeps its noise. */
function readSeed() {
  if (state.live && seed.value.trim() === "") newSeed();
  const written = seed.value.trim();
  if (written === "" || !(state.live || isLocked())) return undefined;
  if (!/^\d+$/.test(written) || BigInt(written) > LARGEST_SEED) return written; // the host says what it wants in its place
  return Number.isSafeInteger(Number(written)) ? Number(written) : BigInt(written);
}

function newSeed() {
  seed.value = String(crypto.getRandomValues(new Uint32Array(1))[0] % LARGEST_NEW_SEED);
}

const isLocked = () => lock.getAttribute("aria-pressed") === "true";
const setLock = (on) => lock.setAttribute("aria-pressed", String(on));

lock.addEventListener("click", () => {
  if (seed.value.trim() === "") newSeed();
  setLock(!isLocked());
});
seed.addEventListener("input", () => setLock(seed.value.trim() !== "")); // who writes one wants it
byId("seed-new").addEventListener("click", () => {
  const was = isLocked();
  newSeed();
  changed(seed);
  setLock(was);
});

byId("swap").addEventListener("click", () => {
  const [width, height] = [byId("width"), byId("height")];
  [width.value, height.value] = [height.value, width.value];
  changed(width);
});
byId("shape").addEventListener("change", ({ target }) => {
  const ratio = Number(target.value);
  const side = state.model?.size ?? state.size.width;
  const rounded = (pixels) => Math.max(64, Math.round(pixels / 8) * 8);
  byId("width").value = ratio ? rounded(side * Math.min(1, ratio)) : "";
  byId("height").value = ratio ? rounded(side / Math.max(1, ratio)) : "";
  changed(byId("width"));
});
for (const name of ["width", "height"]) byId(name).addEventListener("input", sized);

/** The size of the picture that is asked for has changed. */
function sized() {
  const own = state.model?.size ?? 512;
  const side = (name) => Math.min(4096, Math.max(64, Math.round((Number(byId(name).value) || own) / 8) * 8));
  const size = { width: side("width"), height: side("height") };
  if (size.width !== state.size.width || size.height !== state.size.height) state.size = size;
}

state.watch("model", (model) => {
  const { num_inference_steps = 50, guidance_scale = 7.5 } = model?.defaults ?? {};
  byId("num_inference_steps").placeholder = num_inference_steps;
  byId("guidance_scale").placeholder = guidance_scale;
  for (const name of ["width", "height"]) byId(name).placeholder = model?.size ?? "";
  for (const follow of followers) follow();
  sized();
});

function offer(id, names) {
  const select = byId(id);
  const chosen = select.value;
  select.replaceChildren(el("option", { value: "" }, "default"), ...names.map((name) => el("option", { value: name }, name)));
  select.value = names.includes(chosen) ? chosen : "";
}

state.watch("describe", (describe) => {
  if (!describe) return;
  offer("scheduler", describe.schedulers);
  offer("mode", describe.modes);
  offer("previewer", describe.previewers);
  byId("previewer-field").hidden = describe.previewers.length === 0;
  const { properties, $defs } = describe.commands.generate.params;
  for (const name of NUMBERS) {
    const { min, max, step } = bounds(plain(properties[name], $defs));
    Object.assign(byId(name), { min, max, step: step ?? "any" });
  }
});
