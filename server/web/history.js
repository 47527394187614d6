// Finished pictures, newest first: those of this page and those that the host keeps.

import { call, onSession } from "./connection.js";
import { byId, el } from "./dom.js";
import { Entry } from "./entry.js";
import { write } from "./request.js";
import { say } from "./said.js";
import { forget, onPicture, onShown, showEntry, shownEntry } from "./stage.js";

const AT_ONCE = 30;
const ROWS = { ArrowUp: -1, ArrowDown: 1 };
const list = byId("history-list");
const note = byId("history-note");
const more = byId("history-more");
const search = byId("history-search");

const items = new Map(); // entry -> its list item
let next = null; // where what the host keeps goes on
let isKept = false; // whether the host keeps results
const listeners = [];

/** Call `listener` when a request was taken from the history into the controls. */
export const onReuse = (listener) => listeners.push(listener);

/** A picture was finished just now. */
export function addEntry(entry) {
  if (isKept && search.value && !matches(entry)) return;
  list.prepend(itemOf(entry));
  tell();
}

function matches({ prompt }) {
  const lower = prompt.toLowerCase();
  return search.value.toLowerCase().split(/\s+/).every((word) => lower.includes(word));
}

/** Whose file is about to be seen is asked for it. */
const seen = new IntersectionObserver(
  (sights) => {
    for (const { isIntersecting, target } of sights) {
      if (!isIntersecting) continue;
      seen.unobserve(target);
      showThumb(target);
    }
  },
  { rootMargin: "200px" },
);

const entryOf = new WeakMap(); // button -> entry

async function showThumb(button) {
  try {
    const blob = await entryOf.get(button).blob();
    const image = button.querySelector("img");
    image.src = URL.createObjectURL(blob);
    image.onload = () => URL.revokeObjectURL(image.src);
  } catch {
    button.classList.add("gone"); // asked for again when it is shown
  }
}

function itemOf(entry) {
  const image = el("img", { alt: "", decoding: "async", width: entry.width, height: entry.height });
  const button = el("button", { type: "button", class: "thumb", "aria-label": entry.title, title: entry.title, tabindex: "-1", onclick: () => choose(button) }, image);
  const item = el("li", {}, button);
  entryOf.set(button, entry);
  items.set(entry, item);
  seen.observe(button);
  return item;
}

const buttons = () => [...list.querySelectorAll(".thumb")];

/** One of them can be reached by Tab, the arrows lead to the others. */
function reachable(button) {
  for (const other of list.querySelectorAll(".thumb[tabindex='0']")) other.tabIndex = -1;
  if (button) button.tabIndex = 0;
}

function choose(button) {
  reachable(button);
  showEntry(entryOf.get(button));
}

list.addEventListener("keydown", (event) => {
  const all = buttons();
  const place = all.indexOf(document.activeElement);
  if (place < 0 || event.ctrlKey || event.altKey || event.metaKey) return;
  const across = getComputedStyle(list).gridTemplateColumns.split(" ").length;
  const to = { ArrowLeft: place - 1, ArrowRight: place + 1, Home: 0, End: all.length - 1 }[event.key] ?? place + (ROWS[event.key] ?? 0) * across;
  if (to === place || !all[to]) return;
  event.preventDefault();
  all[to].focus();
  choose(all[to]);
});

function mark(entry) {
  for (const [one, item] of items) {
    const button = item.firstChild;
    if (one === entry) button.setAttribute("aria-current", "true");
    else button.removeAttribute("aria-current");
  }
}

onShown(mark);

onPicture({
  reuse({ request, seed }) {
    write({ ...request, seed });
    for (const listener of listeners) listener();
    say("The request is in the form");
  },
  async remove(entry) {
    if (entry.id) await call("results.delete", { ids: [entry.id] });
    const item = items.get(entry);
    const neighbour = item?.nextElementSibling ?? item?.previousElementSibling;
    item?.remove();
    items.delete(entry);
    forget(entry);
    tell();
    say("The picture is deleted");
    if (neighbour) neighbour.firstChild.focus();
  },
});

function tell() {
  const all = buttons();
  if (!all.some((button) => button.tabIndex === 0)) reachable(all[0]);
  const lasting = isKept ? "" : "This host keeps no results: these are gone when the page is.";
  note.textContent = all.length > 0 ? lasting : search.value ? "No prompt has these words." : "Finished pictures appear here.";
  note.hidden = !note.textContent;
  more.hidden = next === null;
  search.hidden = !isKept;
}

async function load(before = null) {
  const asked = search.value.trim();
  try {
    const answer = await call("results.list", { limit: AT_ONCE, before, search: asked || null });
    if (asked !== search.value.trim()) return;
    isKept = true;
    next = answer.next;
    if (before === null) clear();
    const there = new Set([...items.keys()].map(({ id }) => id));
    const rows = answer.results.filter(({ id }) => !there.has(id));
    list.append(...rows.map((row) => itemOf(row.id === shownEntry()?.id ? shownEntry() : new Entry(row))));
    mark(shownEntry());
  } catch {
    isKept = false; // there is no such plugin, or it has no folder
  }
  tell();
}

/** Before a list that has them: those that the host keeps. */
function clear() {
  for (const [entry, item] of items) {
    if (entry.id === null) continue;
    item.remove();
    items.delete(entry);
  }
}

more.addEventListener("click", () => load(next));
let waiting;
search.addEventListener("input", () => {
  clearTimeout(waiting);
  waiting = setTimeout(load, 150);
});
onSession(() => load());
