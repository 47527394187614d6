// Live mode: each change is a new request of one slot. While one is being sent the next ones become one.

const QUIET_MS = 4; // changes that belong together, such as those of one stroke, come within it
const APART_MS = 16; // between two requests: more of them than frames help nobody

export class Live {
  #send;
  #isWanted = false;
  #isSending = false;
  #lastSent = -Infinity;

  /** `send()` sends the controls as they are now. */
  constructor(send) {
    this.#send = send;
  }

  /** Something has changed. */
  poke() {
    this.#isWanted = true;
    if (!this.#isSending) this.#run();
  }

  async #run() {
    this.#isSending = true;
    try {
      while (this.#isWanted) {
        const since = performance.now() - this.#lastSent;
        await new Promise((wake) => setTimeout(wake, Math.max(QUIET_MS, APART_MS - since)));
        this.#isWanted = false;
        this.#lastSent = performance.now();
        await this.#send();
      }
    } finally {
      this.#isSending = false;
    }
  }
}
