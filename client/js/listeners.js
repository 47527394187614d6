// Functions that are called with messages.

export class Listeners {
  #byName = new Map();

  get size() {
    return this.#byName.size;
  }

  /** Call a function with each message of the name; gives a function that ends that. */
  add(name, listener) {
    const listeners = this.#byName.get(name) ?? new Set();
    this.#byName.set(name, listeners.add(listener));
    return () => {
      listeners.delete(listener);
      if (listeners.size === 0 && this.#byName.get(name) === listeners) this.#byName.delete(name);
    };
  }

  call(name, value) {
    for (const listener of [...(this.#byName.get(name) ?? [])]) tell(listener, value);
  }
}

/** Call a function of somebody else's: its fault is shown, and no matter to anybody else. */
export function tell(listener, value) {
  try {
    listener(value);
  } catch (error) {
    queueMicrotask(() => { throw error; });
  }
}
