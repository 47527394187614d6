// The host in its own words, asked again when its plugins have changed.

import { call, onSession } from "./connection.js";
import { state } from "./state.js";

let signature = "";

async function ask() {
  state.describe = await call("describe");
}

onSession(() => ask().catch(() => {})); // without a connection it comes with the next session
state.watch("plugins", (plugins) => {
  const now = JSON.stringify(plugins.map(({ name, state: how, version }) => [name, how, version]));
  if (signature && now !== signature) ask().catch(() => {});
  signature = now;
});
