// Figures of the machine and the engine, as they are told each second.

import { Chart } from "./chart.js";
import { follow, onSession } from "./connection.js";
import { byId, el } from "./dom.js";

const GIB = 2 ** 30;
const percent = (value) => (value === null ? "–" : `${Math.round(value)} %`);
const section = byId("stats");
const tiles = byId("tiles");
const shown = new Map(); // label -> {value, note, chart}

// Each figure: label, value of a `stats` event, how it is written, what stands beside it, and the chart's upper edge.
const FIGURES = [
  ["CPU", ({ cpu }) => cpu.load, percent, ({ cpu }) => `${cpu.cores} cores`, 100],
  ["Memory", ({ cpu }) => cpu.memory.percent, percent, ({ process }) => `host ${(process.memory / GIB).toFixed(1)} GiB`, 100],
  ["Engine", ({ engine }) => engine.recent.ms_per_forward, (ms) => (ms === null ? "idle" : `${Math.round(ms)} ms`), ({ engine }) => `a step · ${engine.running} running`, null],
  ["Batch size", ({ engine }) => engine.recent.rows_per_forward, (rows) => (rows === null ? "–" : rows.toFixed(1)), ({ engine }) => `rows · ${engine.jobs} jobs`, null],
];

function gpuFigures({ gpus }) {
  return gpus.map((gpu, place) => [
    gpus.length > 1 ? `GPU ${gpu.id}` : "GPU",
    (now) => now.gpus[place]?.load ?? null,
    percent,
    (now) => `${((now.gpus[place]?.memoryUsed ?? 0) / 1024).toFixed(1)} of ${((now.gpus[place]?.memoryTotal ?? 0) / 1024).toFixed(0)} GiB`,
    100,
  ]);
}

function show(now) {
  section.hidden = false;
  for (const [label, read, write, beside, top] of [...FIGURES, ...gpuFigures(now)]) {
    if (!shown.has(label)) shown.set(label, tileOf(label, top));
    const { value, note, chart } = shown.get(label);
    value.textContent = write(read(now));
    note.textContent = beside(now);
    chart.add(read(now));
  }
}

function tileOf(label, top) {
  const value = el("dd", { class: "figure" });
  const note = el("dd", { class: "quiet" });
  const canvas = el("canvas", { class: "chart", "aria-hidden": "true" });
  tiles.append(el("div", { class: "tile" }, el("dl", {}, el("dt", { class: "quiet" }, label), value, note), canvas));
  return { value, note, chart: new Chart(canvas, top) };
}

onSession(() => follow("stats.subscribe", { period: 1 }, "stats", ({ stats }) => show(stats), () => (section.hidden = true)));
