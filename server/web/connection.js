// The way to the host: who we are, in which state it is, and what begins anew with each session.

import { ConnectionLost, RemoteError, connect } from "latentwire";

import { state } from "./state.js";

const KEY = "latentwire.key"; // of this browser: what it makes is its own in every session
export const TOKEN = "latentwire.token"; // of this tab; the login page puts it there

let host = null;
let session = null;
const beginners = [];

/** Call `begin` whenever a session has begun: with the page, and where the host had forgotten the one before. */
export const onSession = (begin) => beginners.push(begin);

export async function open() {
  const address = `${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/ws`;
  const token = sessionStorage.getItem(TOKEN) ?? undefined;
  for (let pause = 250; ; pause = Math.min(2 * pause, 5000)) {
    try {
      host = await connect(address, { token, key: key(), onstate });
      host.on("closing", () => (state.connection = "closing"));
      begin();
      return;
    } catch (error) {
      if (error instanceof RemoteError && error.code === "unauthorized") return refused();
      state.connection = "lost";
      await new Promise((wake) => setTimeout(wake, pause));
    }
  }
}

/** A command's result. */
export const call = (command, params = {}) => current().call(command, params);

export const generate = (params) => current().generate(params);

export const upload = (blob) => current().upload(blob);

export const sessionName = () => session;

/** Whether the host lets us switch its plugins. */
export const isOperator = () => Boolean(host?.hello.operator);

/** Follow a subscription for as long as the session lasts; gives a function that ends it. */
export function follow(command, params, event, listener, onerror = () => {}) {
  const subscription = current().subscribe(command, params);
  subscription.on(event, listener);
  subscription.result.catch((error) => error instanceof ConnectionLost || onerror(error));
  return () => subscription.end().catch(() => {});
}

function current() {
  if (!host) throw new ConnectionLost("the page has no connection to the host yet");
  return host;
}

function onstate(now) {
  if (now === "closed" && host) return refused(); // it comes back by itself from all else
  state.connection = now;
  if (now === "open" && host) begin();
}

function begin() {
  if (session === host.hello.session) return;
  session = host.hello.session;
  for (const each of beginners) each();
}

/** What we have shown is not good any more, or another tab has taken the session. */
function refused() {
  state.connection = "refused";
}

function key() {
  let kept = localStorage.getItem(KEY);
  if (!kept) {
    kept = Array.from(crypto.getRandomValues(new Uint8Array(24)), (byte) => byte.toString(16).padStart(2, "0")).join("");
    localStorage.setItem(KEY, kept);
  }
  return kept;
}
