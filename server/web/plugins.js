// The host's plugins: which there are, how they do, and a switch for each where the caller may.

import { call, follow, isOperator, onSession } from "./connection.js";
import { byId, disclose, el, toggle } from "./dom.js";
import { messageOf } from "./errors.js";
import { state } from "./state.js";

const list = byId("plugins-list");
const note = byId("plugins-note");
const title = byId("plugins-title");

title.addEventListener("click", () => disclose(title, byId("plugins-body")));

onSession(() => {
  follow("plugins.subscribe", {}, "plugins", ({ plugins }) => (state.plugins = plugins));
  note.textContent = isOperator() ? "A plugin that is switched off rests until it is switched on or the host starts again." : "Only an operator of this host may switch them.";
  render(state.plugins);
});

state.watch("plugins", render);

function render(plugins) {
  const focused = document.activeElement?.closest(".plugin")?.dataset.name;
  const failed = plugins.filter((row) => row.state === "failed").length;
  byId("plugins-count").textContent = plugins.length ? `${plugins.filter((row) => row.state === "loaded").length} of ${plugins.length}${failed ? `, ${failed} failed` : ""}` : "";
  list.replaceChildren(...plugins.map(rowOf));
  if (focused) list.querySelector(`[data-name="${focused}"] input`)?.focus();
}

function rowOf({ name, version, source, state: how, error, warnings }) {
  const wrong = el("p", { class: "wrong", role: "alert", hidden: true });
  const words = el("span", { class: `state ${how}` }, how);
  const head = el("div", { class: "use-head" }, el("span", { class: "plugin-name" }, name, " ", el("span", { class: "quiet" }, version ?? "", ` ${source}`)), words);
  if (isOperator()) {
    const { element, input } = toggle("", how === "loaded", async (on) => {
      input.disabled = true;
      try {
        await call(on ? "plugins.enable" : "plugins.disable", { name });
      } catch (problem) {
        wrong.textContent = messageOf(problem);
        wrong.hidden = false;
        input.checked = !on;
      }
      input.disabled = false;
    }, `Plugin ${name}`);
    head.append(element);
  }
  const said = [error, ...(warnings ?? [])].filter(Boolean).map((text) => el("p", { class: how === "failed" ? "wrong" : "hint" }, text));
  return el("li", { class: "plugin", "data-name": name }, head, ...said, wrong);
}
