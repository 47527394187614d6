// A session with a host: messages out and in, over one WebSocket after another when they break.

import { encode } from "./codec.js";
import { ConnectionLost, RemoteError } from "./errors.js";
import { Line } from "./line.js";

const FIRST_PAUSE_MS = 100; // before connecting again; each is twice as long as the one before
const LONGEST_PAUSE_MS = 5_000;
const LOOK_MS = 20_000; // how often to look whether the host still says something
const PATIENCE = 4; // looks; its answer waits behind a picture, which takes its time on a slow line
const GOODBYE = 1000; // close codes
const HOST_CLOSES = 1012;
const TAKEN = 4001;

export class Link {
  hello = null;

  #url;
  #shown; // token, key and ticket
  #handlers;
  #line = null; // by which frames go out
  #seq = 0; // of the session's last message on a line that broke
  #count = 0; // of the frames that were sent in it
  #unconfirmed = new Map(); // those of them that the host may not have, by id, in order
  #over = new ConnectionLost("there is no connection yet"); // why there is no session; null where there is one
  #grace; // the timer after which the host has forgotten it
  #isClosed = false;

  /** `handlers`: onmessage(message), onover(error) when what was under way is lost, onstate(state). */
  constructor(url, shown, handlers) {
    this.#url = url;
    this.#shown = shown;
    this.#handlers = handlers;
  }

  /** Connect for the first time; from then on it comes back by itself. */
  async open() {
    this.#handlers.onstate("connecting");
    try {
      await this.#connect();
    } catch (error) {
      this.#close(error);
      throw error;
    }
    this.#listen();
  }

  /** Send a command; if the connection is broken, as soon as there is another one. */
  send(id, frame) {
    if (this.#over) throw this.#over;
    this.#count++;
    this.#unconfirmed.set(id, frame);
    this.#line?.send(frame);
  }

  /** Say goodbye: the host ends the session. */
  close() {
    this.#close(new ConnectionLost("this client has closed the connection"));
  }

  #close(error) {
    if (this.#isClosed) return;
    this.#isClosed = true;
    this.#line?.close(GOODBYE);
    this.#drop(error);
    this.#handlers.onstate("closed");
  }

  /** The session is over. */
  #drop(error) {
    clearTimeout(this.#grace);
    this.#over = error;
    this.#unconfirmed.clear();
    this.#handlers.onover(error);
  }

  async #listen() {
    const looking = setInterval(() => this.#look(), LOOK_MS);
    try {
      while (!this.#isClosed) {
        const line = this.#line;
        for (let message; (message = await line.next()) !== undefined && !this.#isClosed; ) this.#take(message);
        if (!this.#isClosed) await this.#comeBack(line);
      }
    } catch (error) {
      const isTold = error instanceof RemoteError || error instanceof ConnectionLost;
      this.#close(isTold ? error : new ConnectionLost(`this client cannot go on: ${error}`, { cause: error }));
    } finally {
      clearInterval(looking);
    }
  }

  #take(message) {
    if (this.#unconfirmed.has(message.id)) {
      for (const id of this.#unconfirmed.keys()) {
        this.#unconfirmed.delete(id); // the host has all that were sent before, too
        if (id === message.id) break;
      }
    }
    this.#handlers.onmessage(message);
  }

  /** Browsers neither send WebSocket pings nor tell of them, and a line may break without a word. */
  #look() {
    if (!this.#line) return;
    this.#line.silence++;
    if (this.#line.silence === 1) this.send(`look ${this.#count}`, encode({ id: `look ${this.#count}`, command: "ping" }));
    if (this.#line.silence === PATIENCE) this.#line.close(undefined, "the host was silent for too long");
  }

  async #comeBack({ code, reason, seq }) {
    this.#line = null;
    this.#seq = seq;
    const lost = `the connection is lost: ${reason || "it broke"}`;
    if (code === TAKEN) throw new ConnectionLost(lost);
    this.#handlers.onstate("lost");
    const { resume, limits } = this.hello;
    if (code === HOST_CLOSES || resume === null) {
      this.#drop(new ConnectionLost(lost));
    } else {
      const late = () => this.#drop(new ConnectionLost(`${lost}; it could not be resumed in time`));
      this.#grace = setTimeout(late, limits.resume_seconds * 1000);
    }
    for (let pause = FIRST_PAUSE_MS; !this.#isClosed; pause = Math.min(pause * 2, LONGEST_PAUSE_MS)) {
      // all of a host's clients lose it in the same moment; they need not come back in the same one
      await new Promise((wake) => setTimeout(wake, pause * (0.5 + Math.random() / 2)));
      if (this.#isClosed) return;
      try {
        await this.#connect();
        return;
      } catch (error) {
        if (error instanceof RemoteError) throw error; // what is shown is not good any more
      }
    }
  }

  /** Connect, and take the session up if there is one. */
  async #connect() {
    const line = new Line(await this.#address());
    try {
      const hello = await this.#greet(line);
      const answer = this.#over ? null : await this.#resume(line);
      // without a pause from here on, so that no command slips through
      if (this.#isClosed) throw this.#over;
      if (answer?.event === "result") {
        if (this.#over) throw this.#over; // the time was over just now
        this.#sendAgain(line, this.#count - answer.result.received);
      } else {
        if (answer) this.#drop(new ConnectionLost(`the session cannot be resumed: ${answer.message}`));
        this.#begin(hello);
      }
      clearTimeout(this.#grace);
      this.#line = line;
    } catch (error) {
      line.close(this.#isClosed ? GOODBYE : undefined);
      throw error;
    }
    this.#handlers.onstate("open");
  }

  async #address() {
    const { ticket } = this.#shown;
    if (!ticket) return this.#url;
    const address = new URL(this.#url);
    address.searchParams.set("ticket", await ticket());
    return address.href;
  }

  /** What the host says first, once it knows who comes. */
  async #greet(line) {
    const { token, key } = this.#shown;
    let message = await line.expect();
    let hello = message;
    const mustShow = hello.event === "login";
    if (!mustShow && hello.event !== "hello") {
      throw new ConnectionLost(`${this.#url} does not greet as a latentwire host; it begins with ${hello.event}`);
    }
    if (mustShow && !token) {
      throw new RemoteError({ code: "unauthorized", message: "this host asks for its token, or a ticket" });
    }
    if (token || key) {
      line.send(encode({ id: "open", command: "session.open", params: { token, key } }));
      do {
        message = await line.expect();
        if (message.event === "error") throw new RemoteError(message);
        if (message.event === "hello") hello = message;
      } while (message.id !== "open");
      const { observer, operator } = message.result;
      hello = { ...hello, observer, operator };
    }
    return hello;
  }

  async #resume(line) {
    const params = { token: this.hello.resume, seq: this.#seq };
    line.send(encode({ id: "resume", command: "session.resume", params }));
    for (;;) {
      const answer = await line.expect();
      if (answer.id === "resume") return answer;
    }
  }

  #begin(hello) {
    this.hello = hello;
    this.#count = 0;
    this.#over = null;
  }

  /** The latest `lost` frames never arrived. */
  #sendAgain(line, lost) {
    if (lost > 0) for (const frame of [...this.#unconfirmed.values()].slice(-lost)) line.send(frame);
  }
}
