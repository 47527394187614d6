// Puts the page together.

import "./about.js";
import "./describe.js";
import "./plugins.js";
import "./stats.js";
import { onSession, open } from "./connection.js";
import { byId } from "./dom.js";
import { clearErrors, showProblem } from "./errors.js";
import { onReuse } from "./history.js";
import { listen } from "./keys.js";
import { Live } from "./live.js";
import { cancelAll, make } from "./making.js";
import { form } from "./request.js";
import { leaveComparison } from "./stage.js";
import { state } from "./state.js";

const CONNECTION = {
  connecting: "Connecting",
  open: "Connected",
  lost: "Connection lost, trying again",
  closing: "The host is shutting down",
  closed: "Not connected",
  refused: "Not connected: load the page again",
};
const request = byId("request");
const live = new Live(() => make({ isLive: true }));

let isMissed = false; // a change that there was no connection for

function change() {
  if (!state.live) return;
  isMissed = state.connection !== "open";
  if (!isMissed) live.poke();
}

request.addEventListener("input", change);
request.addEventListener("submit", (event) => {
  event.preventDefault();
  if (state.connection !== "open") return showProblem("There is no connection to the host just now.");
  clearErrors(form);
  if (state.live) live.poke();
  else make({ focus: true });
});
byId("live").addEventListener("change", ({ target }) => {
  state.live = target.checked;
  change();
});
byId("cancel").addEventListener("click", cancelAll);
byId("theme").addEventListener("click", window.switchTheme);
onReuse(change);
listen({ cancel: cancelAll, leave: leaveComparison });

state.watch("connection", (now) => {
  const pill = byId("connection");
  pill.dataset.state = now;
  pill.querySelector(".text").textContent = CONNECTION[now];
  byId("generate").disabled = now !== "open";
  if (now === "open" && isMissed) change();
});
let hasSession = false;
onSession(() => {
  if (hasSession) change(); // the host has forgotten the live picture
  hasSession = true;
});
state.watch("describe", (describe) => {
  if (describe) document.documentElement.dataset.ready = String(Math.round(performance.now()));
});
if (location.search) history.replaceState(null, "", location.pathname); // the ticket is used up
open();
