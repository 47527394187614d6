// What all parts of the page share, and who wants to know when it changes.

/** A map of named values; `watch` calls back with a value now, and whenever it has changed. */
export class State {
  #values;
  #watchers = new Map();

  constructor(values) {
    this.#values = { ...values };
    for (const name of Object.keys(values)) {
      Object.defineProperty(this, name, { get: () => this.#values[name], set: (value) => this.#set(name, value) });
    }
  }

  watch(name, watcher) {
    if (!this.#watchers.has(name)) this.#watchers.set(name, new Set());
    this.#watchers.get(name).add(watcher);
    watcher(this.#values[name]);
  }

  #set(name, value) {
    if (this.#values[name] === value) return;
    this.#values[name] = value;
    for (const watcher of this.#watchers.get(name) ?? []) watcher(value);
  }
}

export const state = new State({
  connection: "connecting", // as the client says it, and "closing", "refused"
  describe: null, // the host in its own words
  models: [], // rows of models.list
  model: null, // the row of the one that is chosen
  plugins: [], // rows of plugins.list
  size: { width: 512, height: 512 }, // of the picture that is asked for
  live: false,
  latents: false, // whether to show them
});
