// What the host has loaded beside its models, whoever loaded it; and the row by which a person loads more.

import { call, follow, onSession } from "./connection.js";
import { messageOf } from "./errors.js";
import { el } from "./dom.js";
import { field } from "./form.js";
import { State, state } from "./state.js";

export const loaded = new State({ controlnets: [], adapters: [] });

onSession(() => {
  follow("pipeline.subscribe", {}, "state", ({ state: now }) => {
    for (const kind of ["controlnets", "adapters"]) {
      const signature = (rows) => JSON.stringify(rows.map(({ name, model }) => [name, model]));
      if (signature(now[kind]) !== signature(loaded[kind])) loaded[kind] = now[kind];
    }
  });
});

/** Those for the chosen model. */
export const fitting = (kind) => loaded[kind].filter(({ model }) => model === state.model?.name);

/** An input for a path and a button; examples are of the embedded model. */
export function loader(label, examples, load) {
  const input = el("input", { type: "text", autocomplete: "off", spellcheck: "false", placeholder: examples[0] });
  const button = el("button", { type: "button", class: "plain" }, "Load");
  const shown = field(label, input, "a folder or file below the host's files.roots", el("div", { class: "pair" }, input, button));
  const chips = el("div", { class: "chips" });
  async function run(path) {
    shown.clear();
    button.disabled = true;
    try {
      await load(path);
      input.value = "";
    } catch (error) {
      shown.fail([], messageOf(error));
    } finally {
      button.disabled = false;
    }
  }
  button.addEventListener("click", () => run(input.value.trim() || examples[0]));
  input.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    button.click();
  });
  input.addEventListener("input", (event) => event.stopPropagation()); // no part of the request
  for (const path of examples) {
    const chip = el("button", { type: "button", class: "chip", onclick: () => run(path) }, path.split("/").pop());
    chips.append(chip);
  }
  const element = el("div", { class: "loader" }, chips, shown.element);
  state.watch("model", (model) => (chips.hidden = model?.name !== "emoji"));
  return element;
}

export const load = (command, params) => call(command, { model: state.model?.name, ...params });
