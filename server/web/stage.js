// What the middle of the page shows: pictures in the making, a finished one, or two of them compared.

import { comparison } from "./compare.js";
import { byId, el, plain } from "./dom.js";
import { messageOf, showProblem } from "./errors.js";
import { Picture } from "./pictures.js";
import { put } from "./board.js";
import { say } from "./said.js";
import { state } from "./state.js";
import { Tile } from "./tile.js";

const pictures = byId("pictures");
const bar = byId("shown");
let tiles = []; // of the pictures in the making
let isMaking = true; // whether those are what is shown
let current = null; // the finished picture that is shown
let pinned = null; // the one to compare others with
const doing = { reuse: () => {}, remove: async () => {} };
const watchers = [];

/** What buttons of a picture do that others know how to: `reuse(request)`, `remove(entry)`. */
export const onPicture = (actions) => Object.assign(doing, actions);

/** Call `watcher` with the finished picture that is shown, or null. */
export const onShown = (watcher) => watchers.push(watcher);

export const shownEntry = () => current;

/** Show the pictures in the making: as many tiles, those that are there stay. */
export function showMaking(count, size) {
  while (tiles.length < count) tiles.push(new Tile());
  tiles.length = count;
  tiles.forEach((tile, place) => {
    tile.size = size;
    tile.label = count === 1 ? "The picture in the making" : `Picture ${place + 1} in the making`;
  });
  isMaking = true;
  setCurrent(null);
  layOut(tiles.map((tile) => tile.canvas));
}

export const tileOf = (index) => tiles[index];

/** A picture is finished; alone on the stage it can be worked with at once. */
export function finished(index, entry, count) {
  if (!isMaking || !tiles[index]) return;
  tiles[index].label = entry.title;
  if (count === 1) setCurrent(entry);
}

/** Show a finished picture. */
export async function showEntry(entry) {
  isMaking = false;
  setCurrent(entry);
  if (pinned && pinned !== entry) {
    layOut([comparison(pinned, entry)]);
    return;
  }
  const tile = new Tile();
  tile.size = entry;
  tile.label = entry.title;
  layOut([tile.canvas]);
  try {
    await tile.show(await entry.blob());
  } catch (error) {
    showProblem(messageOf(error));
  }
}

/** Nothing is left of it. */
export function forget(entry) {
  if (pinned === entry) pin(null);
  if (current !== entry) return;
  setCurrent(null);
  layOut([empty()]);
}

/** Leave the comparison; false where there is none. */
export function leaveComparison() {
  if (!pinned) return false;
  pin(null);
  if (current) showEntry(current);
  return true;
}

function layOut(elements) {
  const isSame = elements.length === pictures.children.length && elements.every((one, place) => pictures.children[place] === one);
  if (!isSame) pictures.replaceChildren(...elements);
  pictures.dataset.count = elements.length;
}

function setCurrent(entry) {
  if (entry === current && entry !== null) return;
  current = entry;
  bar.hidden = !entry;
  if (entry) fillBar(entry);
  for (const watcher of watchers) watcher(entry);
}

function pin(entry) {
  pinned = entry;
  say(entry ? "Choose another picture in the history to compare this one with" : "");
  if (current) fillBar(current);
}

function fillBar(entry) {
  const { request: { scheduler, num_inference_steps: steps, guidance_scale: guidance, model }, seed, width, height } = entry;
  const facts = [model, scheduler, steps && `${steps} steps`, guidance !== undefined && guidance !== null && `guidance ${guidance}`, `${width} × ${height}`, `seed ${seed}`];
  const compare = plain("compare", pinned ? "End comparing" : "Compare", () => (pinned ? leaveComparison() : pin(entry)));
  compare.setAttribute("aria-pressed", String(Boolean(pinned)));
  bar.replaceChildren(
    el("p", { class: "shown-prompt" }, entry.prompt || "(no prompt)"),
    el("p", { class: "quiet facts" }, facts.filter(Boolean).join(" · ")),
    el("div", { class: "tools" }, plain("reuse", "Reuse", () => doing.reuse(entry)), download(entry), compare, ...onBoard(entry), removal(entry)),
  );
  if (pinned) bar.append(el("p", { class: "hint" }, pinned === entry ? "Choose another picture in the history to compare this one with." : `Left: ${pinned.title}. Right: ${entry.title}.`));
}

/** A button whose work may fail: the file is the host's, which may be away. */
function tried(icon, label, work) {
  return plain(icon, label, () => work().catch((error) => showProblem(messageOf(error))));
}

function download(entry) {
  return tried("download", "Download", async () => {
    const url = URL.createObjectURL(await entry.blob());
    el("a", { href: url, download: entry.fileName }).click();
    setTimeout(() => URL.revokeObjectURL(url), 10_000);
  });
}

/** Buttons that take the picture to the drawing board, where the host can do something with it. */
function onBoard(entry) {
  const takers = [["img2img", "start", "Start from it"], ["controlnet", "outline", "To the board"]];
  return takers
    .filter(([field]) => state.describe?.fields[field])
    .map(([, layer, label]) => tried(layer === "start" ? "image" : "pen", label, async () => put(layer, await picture(entry))));
}

async function picture(entry) {
  const blob = await entry.blob();
  return entry.imageId ? Picture.there(blob, entry.imageId) : new Picture(blob);
}

/** A button that deletes when it is pressed twice. */
function removal(entry) {
  let isSure = false;
  const button = plain("trash", "Delete", async () => {
    if (isSure) {
      await doing.remove(entry).catch((error) => showProblem(messageOf(error)));
      return;
    }
    isSure = true;
    button.lastChild.textContent = "Delete for good?";
    setTimeout(() => {
      isSure = false;
      button.lastChild.textContent = "Delete";
    }, 4000);
  });
  button.classList.add("danger");
  return button;
}

function empty() {
  return el("p", { class: "empty" }, "Say what you want to see, and press Generate.");
}

layOut([empty()]);
