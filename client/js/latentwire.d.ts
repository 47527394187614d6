/** Client for latentwire hosts. The messages are those of the host's docs/protocol.md. */

export type State = "connecting" | "open" | "lost" | "closed";

/** A whole number: a Number where that holds it exactly (up to 2^53), else a BigInt. Either may be sent. */
export type Whole = number | bigint;

/** A WebSocket message of the host. */
export interface Message {
  id: number | string | null;
  event: string;
  seq: number;
  [name: string]: any;
}

export interface Picture {
  format: "png" | "jpeg" | "webp";
  width: number;
  height: number;
  data: Uint8Array;
}

export interface Tensor {
  dtype: "float32" | "float16";
  shape: number[];
  data: Uint8Array;
}

export interface Hello extends Message {
  event: "hello";
  protocol: string;
  host: string;
  session: string;
  resume: string | null;
  observer: boolean;
  operator: boolean;
  limits: { message_bytes: number; jobs: number; pixels: number; resume_seconds: number };
}

/** What all events of a job share; `slot` and `revision` where its request had a slot. */
export interface JobMessage extends Message {
  job: string;
  slot?: string;
  revision?: number;
}

export interface Accepted extends JobMessage {
  event: "accepted";
  seeds: Whole[];
}

export interface Step extends JobMessage {
  event: "step";
  index: number;
  step: number;
  steps: number;
  timestep: number;
  sigma: number | null;
  seconds: number;
}

export interface Preview extends JobMessage {
  event: "preview";
  index: number;
  step: number;
  steps: number;
  image: Picture;
}

export interface Latents extends JobMessage {
  event: "latents";
  index: number;
  step: number;
  steps: number;
  latents: Tensor;
}

export interface Image extends JobMessage {
  event: "image";
  index: number;
  seed: Whole;
  image: Picture | null;
  latents: Tensor | null;
  image_id: string | null;
  result: string | null;
  unstored: string | null;
}

/** How a generate command ended well. */
export interface Result {
  job: string;
  images: number;
  seeds: Whole[];
  model: string;
  scheduler: string;
  mode: "exact" | "reproducible" | "fast";
  seconds: number;
  slot?: string;
  revision?: number;
}

export interface Ended extends Message {
  event: "result";
  result: Result;
}

interface JobMessages {
  accepted: Accepted;
  step: Step;
  preview: Preview;
  latents: Latents;
  image: Image;
  result: Ended;
}

/** The fields of a request; plugins of the host may add more. */
export interface Request {
  prompt: string;
  negative_prompt?: string;
  model?: string | null;
  scheduler?: string | null;
  num_inference_steps?: number | null;
  guidance_scale?: number | null;
  width?: number | null;
  height?: number | null;
  num_images?: number | null;
  seed?: Whole | Whole[] | null;
  mode?: "exact" | "reproducible" | "fast" | null;
  output_type?: "png" | "latent";
  slot?: string | null;
  min_steps_shown?: number;
  priority?: "interactive" | "normal" | "batch" | null;
  stream?: {
    steps?: boolean;
    previews?: {
      format?: "jpeg" | "webp" | "png";
      size?: number | null;
      quality?: number;
      every?: number;
      max_rate?: number | null;
      previewer?: string | null;
    } | null;
    latents?: { dtype?: "float16" | "float32"; every?: number } | null;
  };
  [field: string]: any;
}

/** A command under way. */
interface Command<R> extends AsyncIterable<Message> {
  /** Rejects with a RemoteError or ConnectionLost. */
  readonly result: Promise<R>;
}

/**
 * Pictures in the making. A loop over it gets every message in order, the result last, and throws what ends the job;
 * leaving the loop early cancels the job. A slow loop gets fewer previews, never late ones. Messages that come before
 * the loop begins are kept for it, unless somebody listens to some: then begin the loop at once or not at all.
 */
export interface Job extends Command<Result>, AsyncIterable<JobMessage | Ended> {
  /** The host's id of the job; null until it is accepted. */
  readonly id: string | null;
  /** Stop it before its next step; false where it has ended already. */
  cancel(): Promise<boolean>;
  /** Call a function with each message of a name; gives a function that ends that. */
  on<Name extends keyof JobMessages>(name: Name, listener: (message: JobMessages[Name]) => void): () => void;
  on(name: string, listener: (message: Message) => void): () => void;
  [Symbol.asyncIterator](): AsyncGenerator<JobMessage | Ended, void, void>;
}

/** What goes on until one has enough of it. Leaving a loop over it ends it. */
export interface Subscription extends Command<any> {
  /** The host's id of the subscription; null until it has begun. */
  readonly id: string | null;
  end(): Promise<void>;
  on(name: string, listener: (message: Message) => void): () => void;
  [Symbol.asyncIterator](): AsyncGenerator<Message, void, void>;
}

/** A connected host. */
export interface Host {
  /** Its greeting; another one where the session was lost and a new one has begun. */
  readonly hello: Hello;
  /** A command's result. */
  call(command: string, params?: Record<string, unknown>): Promise<any>;
  /** Make a picture or several. */
  generate(request: Request): Job;
  /** Run a command that goes on until it is ended, such as `stats.subscribe`. */
  subscribe(command: string, params?: Record<string, unknown>): Subscription;
  /** Send a picture's file, in parts if need be; its id, for requests to name. */
  upload(picture: Blob | ArrayBuffer | ArrayBufferView): Promise<string>;
  /** Call a function with each message that answers no command: `closing`, `gap`. Gives a function that ends that. */
  on(name: string, listener: (message: Message) => void): () => void;
  /** Say goodbye: what is under way is cancelled. */
  close(): void;
}

export interface Options {
  /** The host's, if it asks for one. */
  token?: string;
  /** Gives a new ticket for each connection, in place of the token. */
  ticket?: () => Promise<string> | string;
  /** A secret of your own, of 16 letters at least: what you make is yours in every session with that key. */
  key?: string;
  /**
   * "open" also when it has come back: with the same `hello.session` all goes on, with another one what was under way
   * was rejected. "lost" while it tries to come back; "closed" for good.
   */
  onstate?: (state: State) => void;
}

/** Connect to a host; rejects where nobody answers, it is no host, or what is shown is wrong. */
export function connect(url?: string, options?: Options): Promise<Host>;

/** An object URL of a picture; `URL.revokeObjectURL` frees it. */
export function imageUrl(image: Picture): string;

/** The values of a tensor, row by row. */
export function toFloat32(tensor: Tensor): Float32Array;

/** The host refused a command, or it failed there. */
export class RemoteError extends Error {
  readonly code: string;
  readonly details: { path?: (string | number)[]; message?: string; got?: string; [name: string]: any }[] | Record<string, any>;
  /** The job that it ended, and its slot and revision. */
  readonly job: string | null;
  readonly slot: string | null;
  readonly revision: number | null;
}

/** The host cannot be reached, or the connection broke and the session could not be resumed. */
export class ConnectionLost extends Error {}

/** Messages were given up: everything under way is rejected with it, and jobs go on; `call("jobs")` lists them. */
export class MessagesLost extends ConnectionLost {}
