// Pictures in the making: sends requests, and shows what comes back of the newest one.

import { call, generate } from "./connection.js";
import { showSeed } from "./core.js";
import { byId } from "./dom.js";
import { Entry } from "./entry.js";
import { clearErrors, showError } from "./errors.js";
import { addEntry } from "./history.js";
import { latentsWanted, showLatents } from "./latents.js";
import { Picture, sendAgain } from "./pictures.js";
import { Progress } from "./progress.js";
import { form, params } from "./request.js";
import { finished, showMaking, tileOf } from "./stage.js";
import { state } from "./state.js";

const SLOT = "page";
const PREVIEWS = { format: "jpeg", quality: 85, max_rate: 20 };
const LARGEST_PREVIEW = 512; // pixels of the longer side
const MOST_TRIES = 2; // where the host has forgotten a picture

const underWay = new Map(); // number -> Job; the newest last
let sent = 0;
let shown = 0; // the newest request that anything has come back of
let refused = 0; // the newest one that was not taken

/**
 * Send the controls as they are; it ends when the request is on its way. With `isLive` it takes the place of the one
 * before; `focus` leads to what is wrong.
 */
export async function make({ isLive = false, focus = false } = {}, tries = MOST_TRIES) {
  const number = ++sent;
  document.documentElement.dataset.sent = number;
  try {
    const request = await params();
    const size = { width: request.width ?? state.size.width, height: request.height ?? state.size.height };
    const job = generate({ ...request, ...how(size), ...(isLive && { slot: SLOT, min_steps_shown: 1 }) });
    underWay.set(number, job);
    update();
    const again = () => tries > 1 && number === sent && make({ isLive, focus }, tries - 1);
    follow({ job, number, request, size, focus, again, seeds: [], progress: new Progress() });
  } catch (error) {
    showError(error, form, focus);
  }
}

/** Stop what is under way; false where nothing is. */
export function cancelAll() {
  if (underWay.size === 0) return false;
  call("cancel", { all: true }).catch(() => {});
  return true;
}

function how({ width, height }) {
  const previewer = byId("previewer")?.value || null;
  const size = Math.max(width, height) > LARGEST_PREVIEW ? LARGEST_PREVIEW : null;
  return { stream: { steps: true, previews: { ...PREVIEWS, size, previewer }, latents: latentsWanted() } };
}

async function follow(made) {
  try {
    for await (const event of made.job) HANDLERS[event.event]?.(made, event);
  } catch (error) {
    if (error.code === "unknown_image") sendAgain();
    if (error.code !== "unknown_image" || !made.again()) failed(made, error);
  } finally {
    underWay.delete(made.number);
    update();
  }
}

/** Whether it is the newest that anything has come of. */
function isNewest({ number }) {
  if (number < shown) return false;
  shown = number;
  return true;
}

const HANDLERS = {
  accepted(made, { seeds }) {
    made.seeds = seeds;
    made.progress = new Progress(seeds);
    if (made.number > refused) clearErrors(form);
  },
  queued: (made, event) => isNewest(made) && made.progress.queued(event),
  loading: (made, event) => isNewest(made) && made.progress.loading(event),
  paused: (made) => isNewest(made) && made.progress.paused(),
  started(made, event) {
    Object.assign(made.request, { model: event.model, scheduler: event.scheduler, mode: event.mode });
    if (!isNewest(made)) return;
    showMaking(made.seeds.length, made.size);
    made.progress.started(event);
  },
  step: (made, event) => isNewest(made) && made.progress.step(event),
  preview(made, { index, image }) {
    if (isNewest(made)) tileOf(index)?.show(new Blob([image.data], { type: `image/${image.format}` }), made.number);
  },
  latents: (made, { index, latents }) => index === 0 && isNewest(made) && showLatents(latents),
  image(made, event) {
    const blob = new Blob([event.image.data], { type: "image/png" });
    const { width, height } = event.image;
    const { model } = state;
    const defaults = model?.name === made.request.model ? model.defaults : {};
    const request = { ...defaults, ...made.request, seed: event.seed };
    delete request.num_images;
    if (event.image_id) Picture.there(blob, event.image_id);
    const entry = new Entry({
      id: event.result, blob, prompt: request.prompt, seed: event.seed, width, height, created: Date.now() / 1000, request, imageId: event.image_id,
    });
    addEntry(entry);
    if (!isNewest(made)) return;
    tileOf(event.index)?.show(blob, made.number);
    finished(event.index, entry, made.seeds.length);
  },
  result(made, { result }) {
    if (!isNewest(made)) return;
    made.progress.finished(result);
    showSeed(result.seeds[0]);
  },
};

function failed({ number, focus, progress }, error) {
  if (error.code === "superseded") return;
  if (number === sent) {
    refused = number;
    clearErrors(form);
    showError(error, form, focus);
  }
  if (number >= shown) progress.ended(error.code === "cancelled" ? "Cancelled" : "Not finished");
}

function update() {
  byId("cancel").disabled = underWay.size === 0;
  document.documentElement.dataset.making = String(underWay.size);
}
