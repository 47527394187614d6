// What is told to those who do not see the page: states, not steps.

import { byId } from "./dom.js";

let last = "";

export function say(text) {
  if (text === last) return;
  last = text;
  byId("said").textContent = text;
}
