// Pictures per minute as bars, failed tasks on top of them; plain SVG.
const NS = "http://www.w3.org/2000/svg";
const MINUTE = 60000;
const SHOWN = 60;
const HEIGHT = 180;
const LEFT = 34;
const BOTTOM = 22;
const TOP = 8;
let last = null;

function shape(name, attributes, text) {
  const node = document.createElementNS(NS, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, String(value));
  if (text !== undefined) node.textContent = text;
  return node;
}

// A round number at or above the largest value, which the axis ends at.
function ceiling(value) {
  if (value <= 4) return 4;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 4, 5, 8, 10].map((step) => step * power).find((step) => step >= value);
}

function perMinute(windows, now) {
  const end = Math.floor(now / MINUTE) * MINUTE;
  const rows = Array.from({ length: SHOWN }, (_, index) => ({ start: end - (SHOWN - 1 - index) * MINUTE, done: 0, failed: 0 }));
  for (const row of windows) {
    const place = row.window === "minute" ? SHOWN - 1 - (end - row.start) / MINUTE : -1;
    if (rows[place]) {
      rows[place].done += row.images;
      rows[place].failed += row.failed;
    }
  }
  return rows;
}

const clock = (ms) => new Date(ms).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", hour12: false });

export function drawChart(box, windows, now) {
  const rows = perMinute(windows, now);
  const width = Math.max(260, box.clientWidth);
  const key = JSON.stringify([width, rows]);
  if (key === last) return;
  last = key;
  const top = ceiling(Math.max(...rows.map((row) => row.done + row.failed)));
  const total = rows.reduce((sum, row) => sum + row.done, 0);
  const failed = rows.reduce((sum, row) => sum + row.failed, 0);
  const plot = HEIGHT - TOP - BOTTOM;
  const y = (value) => TOP + plot * (1 - value / top);
  const slot = (width - LEFT) / SHOWN;
  const bar = Math.max(2, slot - Math.min(2, slot * 0.3));
  const svg = shape("svg", {
    viewBox: `0 0 ${width} ${HEIGHT}`, role: "img",
    "aria-label": `${total} pictures and ${failed} failed tasks in the last ${SHOWN} minutes`,
  });
  for (const part of [0, 0.5, 1]) {
    const at = y(top * part);
    svg.append(shape("line", { x1: LEFT, x2: width, y1: at, y2: at, class: part ? "grid" : "base" }));
    svg.append(shape("text", { x: LEFT - 8, y: at + 4, "text-anchor": "end" }, String(top * part)));
  }
  const tip = document.createElement("div");
  tip.className = "tip";
  tip.hidden = true;
  rows.forEach((row, index) => {
    const x = LEFT + index * slot;
    if (new Date(row.start).getMinutes() % 15 === 0 && x > LEFT + 14 && x < width - 18) {
      svg.append(shape("text", { x: x + slot / 2, y: HEIGHT - 5, "text-anchor": "middle" }, clock(row.start)));
    }
    const group = shape("g", { class: "bar" });
    group.append(shape("rect", { x, y: TOP, width: slot, height: plot, class: "hit" }));
    const round = Math.min(2, bar / 2);
    if (row.done) {
      group.append(shape("rect", { x: x + (slot - bar) / 2, y: y(row.done), width: bar, height: y(0) - y(row.done), rx: round, class: "done" }));
    }
    if (row.failed) {
      const from = y(row.done) - (row.done ? 2 : 0);
      const height = Math.max(2, y(0) - y(row.failed));
      group.append(shape("rect", { x: x + (slot - bar) / 2, y: from - height, width: bar, height, rx: round, class: "failed" }));
    }
    group.addEventListener("pointerenter", () => {
      tip.hidden = false;
      tip.textContent = `${clock(row.start)}  ${row.done} pictures${row.failed ? `, ${row.failed} failed` : ""}`;
      tip.style.left = `${Math.min(width - 80, Math.max(80, x + slot / 2))}px`;
    });
    group.addEventListener("pointerleave", () => { tip.hidden = true; });
    svg.append(group);
  });
  box.replaceChildren(svg, tip);
  if (!total && !failed) {
    const none = document.createElement("p");
    none.className = "none";
    none.textContent = "Nothing was drawn in the last hour.";
    box.append(none);
  }
}
