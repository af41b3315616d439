// Workers, what they hold, and which weights are resident where.

import { attr, byId, h, parts, reconcile, show, text } from "./dom.js";
import { ago, count, full, number, ranges, span, tier, toMs, tone } from "./format.js";
import { serviceNow } from "./api.js";

/** Workers report at least every 5 seconds; after 30 their rows are deleted. */
const SILENT = 12;

/** Whether a process is one that draws, and does. */
export const draws = (worker) => worker.role !== "web" && worker.engine === "ready" && silence(worker) <= SILENT;

const part = (name, ...more) => h("dd", { "data-part": name }, ...more);
const fact = (title, name) => h("div", {}, h("dt", {}, title), part(name));

function create(worker) {
  const web = worker.role === "web";
  return h("li", { class: "panel worker" },
    h("header", { class: "worker-head" },
      h("h3", { class: "mono" }, worker.worker_id),
      h("span", { class: "badge", "data-part": "state" })),
    h("p", { class: "quiet", "data-part": "place" }),
    web ? null : h("dl", { class: "figures" },
      fact("Running", "running"), fact("Jobs held", "jobs"), fact("Backlog", "seconds"), fact("Done", "done"), fact("Failed", "failed")),
    h("dl", { class: "lines" },
      web ? null : [fact("Serves", "families"), fact("Partitions", "partitions"), fact("Resident", "resident")], fact("Last status", "age")));
}

function update(node, worker) {
  const at = parts(node);
  const state = stateOf(worker);
  text(at.state, state.words);
  attr(at.state, "data-tone", state.tone);
  text(at.place, [worker.host, worker.device, worker.role === "web" ? "views only" : worker.role].filter(Boolean).join(" · "));
  const when = toMs(worker.at);
  text(at.age, ago(when, serviceNow()));
  attr(at.age, "title", full(when));
  if (worker.role !== "web") updateWork(at, worker);
}

function updateWork(at, worker) {
  const load = Object.values(worker.backlog || {});
  for (const name of ["running", "jobs", "done", "failed"]) text(at[name], number(worker[name] ?? 0));
  text(at.seconds, span(load.reduce((total, model) => total + (model.seconds || 0), 0)));
  attr(at.failed, "data-tone", worker.failed ? "bad" : null);
  text(at.families, (worker.families || []).join(", ") || "no tasks");
  text(at.partitions, owned(worker.partitions || {}));
  const residents = [...named(worker.checkpoints, ""), ...named(worker.loras, "LoRA ")];
  reconcile(at.resident, residents.length ? residents : [{ name: "nothing yet", key: "" }], (item) => item.key,
    () => h("span", { class: "chip" }, h("span", { "data-part": "name" }), h("span", { class: "chip-note", "data-part": "tier" })),
    (chip, item) => {
      const inside = parts(chip);
      text(inside.name, item.name);
      text(inside.tier, item.tier ? tier(item.tier) : "");
      attr(chip, "data-empty", item.key === "" ? "yes" : null);
    });
}

const silence = (worker) => (serviceNow() - toMs(worker.at)) / 1000;

function stateOf(worker) {
  if (silence(worker) > SILENT) return { words: "silent", tone: "bad" };
  if (worker.state && worker.state !== "running") return { words: worker.state, tone: tone(worker.state) };
  if (worker.role === "web") return { words: "web", tone: "calm" };
  const engine = worker.engine || "unknown";
  if (engine === "ready" && worker.full) return { words: "full", tone: "wait" };
  return { words: engine === "ready" ? "engine ready" : `engine ${engine}`, tone: tone(engine) };
}

function owned(partitions) {
  const topics = Object.entries(partitions).filter(([, numbers]) => numbers.length);
  return topics.map(([topic, numbers]) => `${topic} ${ranges(numbers)}`).join("\n") || "none";
}

function named(weights, prefix) {
  return Object.entries(weights || {}).map(([name, where]) => ({ name: prefix + name, tier: where, key: prefix + name }));
}

/** One card per process that reports. */
export function showWorkers(workers) {
  const drawing = workers.filter((worker) => worker.role !== "web");
  const sorted = [...drawing, ...workers.filter((worker) => worker.role === "web")];
  show(byId("workers-empty"), !workers.length);
  const partly = drawing.filter((worker) => !draws(worker)).length;
  text(byId("workers-note"), !workers.length ? "" : [
    count(drawing.length, "worker"),
    sorted.length > drawing.length && count(sorted.length - drawing.length, "web process", "web processes"),
    partly && `${partly} not ready`,
  ].filter(Boolean).join(", "));
  reconcile(byId("workers"), sorted, (worker) => worker.worker_id, create, update);
}

const COLUMNS = ["queued", "running", "seconds", "succeeded", "failed"];

/** Tasks of every model as the database counts them, and the seconds of work that workers hold of it. */
export function showModels(queue, backlog) {
  const names = [...new Set([...Object.keys(queue || {}), ...Object.keys(backlog)])].sort();
  const rows = names.map((name) => ({ name, ...queue?.[name], seconds: backlog[name]?.seconds || 0 }));
  show(byId("backlog-empty"), !rows.length);
  show(byId("backlog-table"), rows.length > 0);
  reconcile(byId("backlog"), rows, (row) => row.name,
    (row) => h("tr", {}, h("th", { scope: "row", class: "mono" }, row.name), ...COLUMNS.map((name) => h("td", { class: "n", "data-part": name }))),
    (node, row) => {
      for (const name of COLUMNS) {
        const cell = parts(node)[name];
        const known = queue !== null || name === "seconds";
        text(cell, !known ? "–" : name === "seconds" ? span(row.seconds) : number(row[name] || 0));
        attr(cell, "data-tone", !row[name] ? "none" : name === "failed" ? "bad" : null);
      }
    });
}

/** Every weight that is resident somewhere, with the workers that hold it, by tier. */
export function showResident(state) {
  const rows = new Map();
  for (const [worker, held] of Object.entries(state)) {
    for (const [kind, weights] of [["checkpoint", held.checkpoints], ["LoRA", held.loras]]) {
      for (const [name, where] of Object.entries(weights || {})) {
        const key = `${kind}:${name}`;
        if (!rows.has(key)) rows.set(key, { key, kind, name, tiers: {} });
        (rows.get(key).tiers[where] ||= []).push(worker);
      }
    }
  }
  const sorted = [...rows.values()].sort((a, b) => a.kind.localeCompare(b.kind) || a.name.localeCompare(b.name));
  show(byId("resident-empty"), !sorted.length);
  reconcile(byId("resident"), sorted, (row) => row.key,
    (row) => h("li", {}, h("p", { class: "bar-head" }, h("span", { class: "mono" }, row.name), h("span", { class: "quiet" }, row.kind)),
      h("p", { class: "quiet", "data-part": "where" })),
    (node, row) => text(parts(node).where, Object.entries(row.tiers).map(([where, workers]) => `${tier(where)}: ${
      workers.length > 3 ? count(workers.length, "worker") : workers.join(", ")}`).join(" · ")));
}
