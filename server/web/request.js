// What the page asks for: all controls together as the params of `generate`, and the other way round.

import { chooseModel } from "./models.js";
import { core } from "./core.js";
import { resolved } from "./pictures.js";
import { sections } from "./sections.js";
import { state } from "./state.js";

/** Controls as one: an error goes to whoever knows its path. */
export const form = {
  fail: (path, message) => core.fail(path, message) || sections.fail(path, message),
  clear() {
    core.clear();
    sections.clear();
  },
};

/** The params as they are now, pictures sent. */
export async function params() {
  const values = { ...core.read(), ...sections.read() };
  const isDefault = !state.model || state.model.default;
  return resolved(isDefault ? values : { ...values, model: state.model.name });
}

/** Show a request in the controls. */
export function write(request) {
  clearNulls(request);
  chooseModel(request.model);
  core.write(request);
  sections.write(request);
}

function clearNulls(request) {
  for (const [name, value] of Object.entries(request)) if (value === null) delete request[name];
}
