// How commands fail.

/** The host refused a command, or it failed there: see `code`, `message` and `details`. */
export class RemoteError extends Error {
  constructor({ code, message, details = [], job = null, slot = null, revision = null }) {
    super(message);
    this.name = "RemoteError";
    this.code = code;
    this.details = details;
    this.job = job; // the one that it ended
    this.slot = slot;
    this.revision = revision;
  }
}

/** The host cannot be reached, or the connection broke and the session could not be resumed. */
export class ConnectionLost extends Error {
  constructor(message, options) {
    super(message, options);
    this.name = "ConnectionLost";
  }
}

/**
 * The host had to give up messages for this client: it was away, or read too slowly, for too long. Everything under way
 * is rejected with it, since nobody knows whose they were. Jobs go on: `call("jobs")` lists them.
 */
export class MessagesLost extends ConnectionLost {
  constructor({ from_seq: first, to_seq: last }) {
    super(`the host gave up messages ${first} to ${last}; \`jobs\` lists what still runs`);
    this.name = "MessagesLost";
  }
}
