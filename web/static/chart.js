// Images per minute over the last hour, as stacked bars; read with the pointer, or with the arrow keys.

import { attr, byId, reconcile, s, text } from "./dom.js";
import { clock, count, span } from "./format.js";
import { serviceNow } from "./api.js";

const MINUTES = 60;
const MINUTE = 60000;
const HEIGHT = 240;
const PAD = { left: 40, right: 8, top: 12, bottom: 26 };

let buckets = [];
let chosen = null;
let drawn = null;

/** Show the minutes of the last hour. */
export function showChart(rows) {
  const last = Math.floor(serviceNow() / MINUTE) * MINUTE;
  const byStart = new Map();
  for (const row of rows) {
    if (row.window !== "minute") continue;
    const sum = byStart.get(row.start) || { images: 0, finished: 0, failed: 0, submitted: 0, denoise: 0 };
    for (const name of ["images", "finished", "failed", "submitted"]) sum[name] += row[name] || 0;
    sum.denoise += row.seconds?.denoise || 0;
    byStart.set(row.start, sum);
  }
  buckets = Array.from({ length: MINUTES }, (_, i) => {
    const start = last - (MINUTES - 1 - i) * MINUTE;
    return { start, ...(byStart.get(start) || { images: 0, finished: 0, failed: 0, submitted: 0, denoise: 0 }) };
  });
  draw();
}

/** Four whole, round steps that reach `value`. */
function ceiling(value) {
  if (value <= 4) return 4;
  const power = 10 ** Math.floor(Math.log10(value / 4));
  return 4 * [1, 2, 3, 5, 10].map((step) => step * power).find((step) => 4 * step >= value);
}

function frame(box) {
  const svg = s("svg", { class: "chart-svg", tabindex: 0, role: "img" },
    s("g", { class: "grid" }), s("g", { class: "bars" }), s("g", { class: "axis" }),
    s("rect", { class: "chart-hover", visibility: "hidden" }));
  svg.addEventListener("pointermove", (event) => choose(indexAt(event)));
  svg.addEventListener("pointerleave", () => choose(null));
  svg.addEventListener("blur", () => choose(null));
  svg.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1, Home: -MINUTES, End: MINUTES }[event.key];
    if (!step) return;
    event.preventDefault();
    choose(Math.max(0, Math.min(MINUTES - 1, (chosen ?? MINUTES - 1) + (chosen === null ? 0 : step))));
  });
  box.append(svg);
  new ResizeObserver(draw).observe(box);
  return svg;
}

function indexAt(event) {
  const area = drawn.getBoundingClientRect();
  const index = Math.floor(((event.clientX - area.left - PAD.left) / (area.width - PAD.left - PAD.right)) * MINUTES);
  return index >= 0 && index < MINUTES ? index : null;
}

function draw() {
  const box = byId("chart");
  drawn ||= frame(box);
  if (!buckets.length) return;
  const width = Math.max(240, Math.round(box.clientWidth));
  const inner = { width: width - PAD.left - PAD.right, height: HEIGHT - PAD.top - PAD.bottom };
  const top = ceiling(Math.max(...buckets.map((bucket) => bucket.images + bucket.failed)));
  const y = (value) => PAD.top + inner.height * (1 - value / top);
  const slot = inner.width / MINUTES;
  attr(drawn, "viewBox", `0 0 ${width} ${HEIGHT}`);
  attr(drawn, "aria-label", summary());
  const [grid, bars, axis] = drawn.children;
  reconcile(grid, [0, 1, 2, 3, 4], (i) => i,
    () => s("g", {}, s("line", {}), s("text", {})),
    (node, i) => {
      const [line, label] = node.children;
      const at = Math.round(y((top * i) / 4)) + 0.5;
      set(line, { x1: PAD.left, x2: width - PAD.right, y1: at, y2: at });
      set(label, { x: PAD.left - 8, y: at + 4, "text-anchor": "end" });
      text(label, (top * i) / 4);
    });
  reconcile(bars, buckets.map((bucket, i) => ({ ...bucket, i })), (bucket) => bucket.i,
    () => s("g", {}, s("rect", { class: "bar-done", rx: 1.5 }), s("rect", { class: "bar-failed", rx: 1.5 })),
    (node, bucket) => {
      const x = PAD.left + bucket.i * slot + slot * 0.12;
      const [done, failed] = node.children;
      column(done, x, slot * 0.76, y(bucket.images), y(0));
      column(failed, x, slot * 0.76, y(bucket.images + bucket.failed), y(bucket.images));
    });
  const marks = buckets.map((bucket, i) => ({ i, start: bucket.start }))
    .filter(({ start }) => (start / MINUTE) % (width < 480 ? 20 : 10) === 0);
  reconcile(axis, marks, (mark) => mark.start, () => s("text", { "text-anchor": "middle" }),
    (node, mark) => {
      set(node, { x: Math.max(PAD.left + 14, Math.min(width - 20, PAD.left + (mark.i + 0.5) * slot)), y: HEIGHT - 7 });
      text(node, clock(mark.start));
    });
  choose(chosen);
}

function column(rect, x, width, from, to) {
  set(rect, { x: x.toFixed(2), width: width.toFixed(2), y: from.toFixed(2), height: Math.max(0, to - from).toFixed(2) });
}

function set(node, values) {
  for (const [name, value] of Object.entries(values)) attr(node, name, value);
}

/** Mark a minute and say what happened in it; `null` says what happened in the hour. */
function choose(index) {
  chosen = index;
  const mark = drawn.lastElementChild;
  if (!buckets.length) return;
  if (index === null) {
    attr(mark, "visibility", "hidden");
    text(byId("chart-say"), summary());
    return;
  }
  const width = Number(drawn.getAttribute("viewBox").split(" ")[2]);
  const slot = (width - PAD.left - PAD.right) / MINUTES;
  set(mark, { x: PAD.left + index * slot, width: slot, y: PAD.top, height: HEIGHT - PAD.top - PAD.bottom, visibility: "visible" });
  const bucket = buckets[index];
  const said = [`${clock(bucket.start)}  ${count(bucket.images, "image")} of ${count(bucket.finished, "task")}`,
    bucket.failed && `${bucket.failed} failed`, `${bucket.submitted} submitted`,
    bucket.finished > 0 && bucket.denoise > 0 && `${span(bucket.denoise / bucket.finished)} of denoising a task`];
  text(byId("chart-say"), said.filter(Boolean).join(" · "));
}

function summary() {
  const images = buckets.reduce((total, bucket) => total + bucket.images, 0);
  const failed = buckets.reduce((total, bucket) => total + bucket.failed, 0);
  if (!images && !failed) return "Nothing was drawn in the last hour.";
  const best = Math.max(...buckets.map((bucket) => bucket.images));
  return `${count(images, "image")} in the last hour, ${best} in the best minute${failed ? `, ${count(failed, "task")} failed` : ""}.`;
}
