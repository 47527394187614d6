// One command's messages, on the client's side of the wire.

import { RemoteError } from "./errors.js";
import { Listeners } from "./listeners.js";

// As on the host: a newer one takes the place of an unread one of its picture, so a slow reader is never late.
const LATEST_WINS = new Set(["queued", "preview", "latents", "state", "plugins", "stats", "node_preview", "node_progress"]);

/** A command under way; the host hands it its messages by `take`, and `fail` ends it without one. */
export class Command {
  id = null; // what the host calls what the command has begun

  #unread = new Map(); // in order of arrival
  #count = 0;
  #listeners = new Listeners();
  #wake = () => {};
  #settled = withResolvers();
  #begun = withResolvers();
  #isRead = false;
  #isOver = false;

  constructor(call) {
    this.callHost = call;
    this.#settled.promise.catch(() => {}); // also told to who reads the messages
  }

  /** The command's result; rejects with what ended it. */
  get result() {
    return this.#settled.promise;
  }

  /** Call `listener` with each message whose `event` is `name`; gives a function that ends that. */
  on(name, listener) {
    return this.#listeners.add(name, listener);
  }

  /** Every message in order, the result last; whoever leaves before that stops what the command has begun. */
  async *[Symbol.asyncIterator]() {
    this.#isRead = true;
    try {
      for (;;) {
        while (this.#unread.size === 0 && !this.#isOver) await new Promise((wake) => (this.#wake = wake));
        if (this.#unread.size === 0) break;
        const [key, message] = this.#unread.entries().next().value;
        this.#unread.delete(key);
        yield message;
      }
      await this.result;
    } finally {
      this.#unread.clear();
      this.#isRead = false;
      if (!this.#isOver) this.stop().catch(() => {}); // the connection is lost: the host stops it by itself
    }
  }

  take(message) {
    const { event } = message;
    if (event === "accepted" || event === "subscribed") {
      this.id = event === "accepted" ? message.job : message.subscription;
      this.#begun.resolve();
    }
    if (event === "error") {
      this.fail(new RemoteError(message));
    } else {
      this.#keep(message);
      if (event === "result") this.#end(() => this.#settled.resolve(message.result));
    }
    this.#listeners.call(event, message);
  }

  fail(error) {
    this.#end(() => this.#settled.reject(error));
  }

  /** Whether there is something to stop, once the host has said what has begun. */
  async hasBegun() {
    await this.#begun.promise;
    return !this.#isOver;
  }

  /** Stop what it has begun; the kinds of commands that begin something know how. */
  async stop() {}

  #keep(message) {
    if (!this.#isRead && this.#listeners.size > 0) return; // nobody may ever read it
    const key = LATEST_WINS.has(message.event) ? `${message.event} ${message.index ?? message.node}` : this.#count++;
    this.#unread.delete(key);
    this.#unread.set(key, message);
    this.#wake();
  }

  #end(settle) {
    this.#isOver = true;
    settle();
    this.#begun.resolve();
    this.#wake();
  }
}

/** Pictures in the making; `id` is the job's, null until the host has accepted it. */
export class Job extends Command {
  /** Stop it before its next step; false where it has ended already. */
  async cancel() {
    if (!(await this.hasBegun())) return false;
    return (await unless("unknown_job", this.callHost("cancel", { job: this.id })))?.cancelled ?? false;
  }

  stop() {
    return this.cancel();
  }
}

/** What goes on until one has enough of it. Its messages come without the two that begin and end it. */
export class Subscription extends Command {
  async *[Symbol.asyncIterator]() {
    for await (const message of super[Symbol.asyncIterator]()) {
      if (message.event !== "subscribed" && message.event !== "result") yield message;
    }
  }

  /** End it; loops over it end, too. */
  async end() {
    if (await this.hasBegun()) {
      await unless("unknown_subscription", this.callHost("unsubscribe", { subscription: this.id }));
    }
  }

  stop() {
    return this.end();
  }
}

async function unless(code, result) {
  try {
    return await result;
  } catch (error) {
    if (error.code !== code) throw error;
  }
}

function withResolvers() {
  let resolve, reject;
  const promise = new Promise((...both) => ([resolve, reject] = both));
  return { promise, resolve, reject };
}
