// Says what is wrong, at the field that it concerns where there is one.

import { ConnectionLost } from "latentwire";

import { byId } from "./dom.js";
import { say } from "./said.js";

const box = byId("problem");
const QUIET = new Set(["superseded", "cancelled"]);

/** Show an error of a request. `form` has the fields; `focus` leads a person there who has just asked for it. */
export function showError(error, form, focus = false) {
  if (QUIET.has(error.code)) return;
  const others = [];
  const details = Array.isArray(error.details) ? error.details : [];
  for (const { path = [], message } of details) {
    if (path.length === 0 || !form.fail(path, message)) others.push(path.length ? `${path.join(".")}: ${message}` : message);
  }
  if (others.length > 0 || details.length === 0) {
    showProblem(others.length > 0 ? others.join("; ") : messageOf(error));
  } else {
    say(`Not taken: ${details[0].message}`);
  }
  if (focus) document.querySelector("[aria-invalid=true]")?.focus();
}

export function showProblem(text) {
  box.textContent = text;
  box.hidden = false;
}

export const hideProblem = () => (box.hidden = true);

export function clearErrors(form) {
  hideProblem();
  form.clear();
}

export function messageOf(error) {
  if (error instanceof ConnectionLost) return "The connection to the host was lost, and what was under way with it.";
  return error.message || String(error);
}
