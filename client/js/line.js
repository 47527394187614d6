// One WebSocket, its messages in order.

import { decode } from "./codec.js";
import { ConnectionLost } from "./errors.js";

const SUBPROTOCOL = "latentwire.v1.msgpack";
const GREETING_MS = 10_000;
const KEPT = 4000; // close code: the host keeps the session

export class Line {
  code = null; // that it was closed with
  reason = "";
  seq = 0; // of the last message
  silence = 0; // how often somebody has looked since the last message

  #socket;
  #frames = [];
  #wake = () => {};

  constructor(url) {
    this.url = url;
    try {
      this.#socket = new WebSocket(url, SUBPROTOCOL);
    } catch (error) {
      throw new ConnectionLost(`cannot connect to ${url}: ${error.message}`, { cause: error });
    }
    this.#socket.binaryType = "arraybuffer";
    this.#socket.onmessage = ({ data }) => {
      this.silence = 0;
      this.#frames.push(data);
      this.#wake();
    };
    this.#socket.onclose = ({ code, reason }) => this.#end(code, reason);
  }

  /** The next message, undefined when it is closed and all are read; only one may wait. */
  async next() {
    while (this.#frames.length === 0) {
      if (this.code !== null) return undefined;
      await new Promise((wake) => (this.#wake = wake));
    }
    const message = decode(this.#frames.shift());
    this.seq = message.seq;
    return message;
  }

  /** The next message, which must come soon. */
  async expect() {
    const timer = setTimeout(() => this.close(KEPT, "it is silent"), GREETING_MS);
    try {
      const message = await this.next();
      if (message !== undefined) return message;
    } finally {
      clearTimeout(timer);
    }
    throw new ConnectionLost(`cannot connect to ${this.url}: ${this.reason || "is `latentwire serve` running there?"}`);
  }

  send(frame) {
    if (this.code === null) this.#socket.send(frame);
  }

  /** Close it, without waiting for the other end: that may be gone. */
  close(code = KEPT, reason = "") {
    if (this.code !== null) return;
    this.#socket.onmessage = this.#socket.onclose = null;
    this.#socket.close(code, reason);
    this.#end(code, reason);
  }

  #end(code, reason) {
    this.code = code;
    this.reason = reason;
    this.#wake();
  }
}
