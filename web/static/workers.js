// Workers, what they hold, and which weights are resident where.

import { attr, bar, byId, fill, h, parts, reconcile, show, text } from "./dom.js";
import { ago, count, full, number, ranges, span, tier, toMs, tone } from "./format.js";
import { serviceNow } from "./api.js";

const part = (name, ...more) => h("dd", { "data-part": name }, ...more);
const fact = (title, name) => h("div", {}, h("dt", {}, title), part(name));

function create(worker) {
  return h("li", { class: "panel worker" },
    h("header", { class: "worker-head" },
      h("h3", { class: "mono" }, worker.worker_id),
      h("span", { class: "badge", "data-part": "state" })),
    h("p", { class: "quiet", "data-part": "place" }),
    h("dl", { class: "figures" },
      fact("Running", "running"), fact("Jobs held", "jobs"), fact("Backlog", "seconds"), fact("Done", "done"), fact("Failed", "failed")),
    h("dl", { class: "lines" },
      fact("Serves", "families"), fact("Partitions", "partitions"), fact("Resident", "resident"), fact("Last status", "age")));
}

function update(node, worker) {
  const at = parts(node);
  const web = worker.role === "web";
  const load = Object.values(worker.backlog || {});
  const state = stateOf(worker);
  text(at.state, state.words);
  attr(at.state, "data-tone", state.tone);
  text(at.place, [worker.host, worker.device || (web ? "views only" : ""), worker.role].filter(Boolean).join(" · "));
  for (const name of ["running", "jobs", "done", "failed"]) text(at[name], web ? "–" : number(worker[name] ?? 0));
  text(at.seconds, web ? "–" : span(load.reduce((total, model) => total + (model.seconds || 0), 0)));
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
  const when = toMs(worker.at);
  text(at.age, ago(when, serviceNow()));
  attr(at.age, "title", full(when));
}

function stateOf(worker) {
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
  const partly = drawing.filter((worker) => worker.engine !== "ready").length;
  text(byId("workers-note"), !workers.length ? "" : [
    count(drawing.length, "worker"),
    sorted.length > drawing.length && count(sorted.length - drawing.length, "web process", "web processes"),
    partly && `${partly} not ready`,
  ].filter(Boolean).join(", "));
  reconcile(byId("workers"), sorted, (worker) => worker.worker_id, create, update);
}

/** Seconds of work by model, the longest first. */
export function showBacklog(backlog) {
  const models = Object.entries(backlog).filter(([, load]) => load.jobs || load.seconds)
    .sort(([a, x], [b, y]) => y.seconds - x.seconds || a.localeCompare(b));
  const most = Math.max(1e-9, ...models.map(([, load]) => load.seconds || 0));
  show(byId("backlog-empty"), !models.length);
  reconcile(byId("backlog"), models, ([name]) => name,
    ([name]) => h("li", {}, h("p", { class: "bar-head" }, h("span", { class: "mono" }, name), h("span", { "data-part": "say" })),
      h("div", { "data-part": "holder" }, bar(`Share of the longest backlog, ${name}`)), h("p", { class: "quiet", "data-part": "where" })),
    (node, [, load]) => {
      const at = parts(node);
      text(at.say, `${count(load.jobs || 0, "job")}, ${span(load.seconds || 0)}`);
      fill(at.holder.firstElementChild, (load.seconds || 0) / most);
      const where = Object.entries(load.workers || {}).filter(([, share]) => share.jobs);
      text(at.where, where.slice(0, 4).map(([worker, share]) => `${worker} ${number(share.jobs)}`).join(" · ")
        + (where.length > 4 ? ` and ${where.length - 4} more workers` : ""));
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
