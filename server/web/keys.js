// The keyboard, wherever the focus is.

import { byId } from "./dom.js";

/** `cancel` gives whether there was something to cancel, `leave` whether there was something to leave. */
export function listen({ cancel, leave }) {
  document.addEventListener("keydown", (event) => {
    if (document.querySelector("dialog[open]")) return;
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      byId("request").requestSubmit();
    }
    if (event.key === "Escape" && (cancel() || leave())) event.preventDefault();
  });
}
