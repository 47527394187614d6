// The model picker.

import { call, onSession } from "./connection.js";
import { byId, changed, el } from "./dom.js";
import { state } from "./state.js";

const select = byId("model");

export async function loadModels() {
  const { models } = await call("models.list");
  const chosen = state.model?.name;
  state.models = models;
  select.replaceChildren(
    ...models.map(({ name, error, description }) =>
      el("option", { value: name, disabled: Boolean(error), title: error ?? description }, error ? `${name} (cannot be used)` : name),
    ),
  );
  select.disabled = false;
  choose(models.find((model) => model.name === chosen && !model.error) ?? models.find((model) => model.default) ?? models[0]);
}

/** Choose a model by name; what the host does not have is left alone. */
export function chooseModel(name) {
  const model = state.models.find((one) => one.name === name && !one.error);
  if (model) choose(model);
}

function choose(model) {
  select.value = model?.name ?? "";
  state.model = model ?? null;
}

select.addEventListener("change", () => {
  chooseModel(select.value);
  changed(byId("prompt"));
});
onSession(() => loadModels().catch(() => {})); // without a connection it comes with the next session
