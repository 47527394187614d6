// Client for latentwire hosts, for browsers and whatever else has WebSockets: see README.md and latentwire.d.ts.

import { encode } from "./codec.js";
import { Command, Job, Subscription } from "./command.js";
import { MessagesLost, RemoteError } from "./errors.js";
import { Link } from "./link.js";
import { Listeners, tell } from "./listeners.js";

export { ConnectionLost, MessagesLost, RemoteError } from "./errors.js";
export { imageUrl, toFloat32 } from "./media.js";

const MESSAGE_HEAD = 256; // bytes of a message for all but the data in it

/** A connected host; made by `connect`. */
class Host {
  #link;
  #commands = new Map(); // under way, by id
  #lastId = 0;
  #listeners = new Listeners();

  constructor(url, { token, ticket, key, onstate = () => {} }) {
    const handlers = {
      onmessage: (message) => this.#take(message),
      onover: (error) => this.#failAll(error),
      onstate: (state) => tell(onstate, state),
    };
    this.#link = new Link(url, { token, ticket, key }, handlers);
  }

  open() {
    return this.#link.open();
  }

  get hello() {
    return this.#link.hello;
  }

  async call(command, params = {}) {
    return this.#start(this.#new(Command), command, params).result;
  }

  generate(params) {
    return this.#start(this.#new(Job), "generate", params);
  }

  subscribe(command, params = {}) {
    return this.#start(this.#new(Subscription), command, params);
  }

  async upload(picture) {
    const data = await bytesOf(picture);
    const part = this.hello.limits.message_bytes - MESSAGE_HEAD;
    if (data.length <= part) return (await this.call("images.put", { data })).image_id;
    const { upload } = await this.call("uploads.begin", { size: data.length });
    for (let begin = 0; begin < data.length; begin += part) {
      await this.call("uploads.append", { upload, data: data.subarray(begin, begin + part) });
    }
    return (await this.call("images.put", { upload })).image_id;
  }

  on(name, listener) {
    return this.#listeners.add(name, listener);
  }

  close() {
    this.#link.close();
  }

  #new(Kind) {
    return new Kind((command, params) => this.call(command, params));
  }

  #start(command, name, params) {
    const id = ++this.#lastId;
    this.#commands.set(id, command);
    try {
      const frame = encode({ id, command: name, params });
      const limit = this.hello.limits.message_bytes;
      if (frame.length > limit) { // the host could not even tell whose message it was
        const message = `${name} has ${frame.length} bytes, the host's limit is ${limit}`;
        throw new RemoteError({ code: "message_too_large", message });
      }
      this.#link.send(id, frame);
    } catch (error) {
      this.#commands.delete(id);
      command.fail(error);
    }
    return command;
  }

  #take(message) {
    const { id, event } = message;
    if (id === null) {
      if (event === "error") this.#failAll(new RemoteError(message)); // whose it was is not known
      if (event === "gap") this.#failAll(new MessagesLost(message));
      this.#listeners.call(event, message);
      return;
    }
    const command = this.#commands.get(id);
    if (event === "result" || event === "error") this.#commands.delete(id);
    command?.take(message);
  }

  #failAll(error) {
    const commands = [...this.#commands.values()];
    this.#commands.clear();
    for (const command of commands) command.fail(error);
  }
}

/** Connect to a host. Rejects where nobody answers, it is no host, or what is shown is wrong. */
export async function connect(url = "ws://127.0.0.1:8000/ws", options = {}) {
  const host = new Host(url, options);
  await host.open();
  return host;
}

async function bytesOf(picture) {
  if (picture instanceof Blob) return new Uint8Array(await picture.arrayBuffer());
  if (ArrayBuffer.isView(picture)) return new Uint8Array(picture.buffer, picture.byteOffset, picture.byteLength);
  return new Uint8Array(picture);
}
