// The state of the service in one sentence, what it depends on, and the totals.

import { attr, byId, h, parts, reconcile, text } from "./dom.js";
import { count, number, span } from "./format.js";

const WORDS = {
  broker: "broker", database: "database", storage: "storage", tables: "tables", engine: "engine", process: "process",
};

let heard = null;
let drawing = true;
let problem = null;

/** Whether the service is ready, and if not, which parts say what. */
export function showState({ ready, status, checks }) {
  const failing = Object.entries(checks).filter(([, check]) => !check.ok);
  const stopping = status === "stopping";
  const reason = failing.map(([name, check]) => `${WORDS[name] || name}: ${check.message || "does not answer"}`);
  const [title, note] = ready && drawing ? ["Ready to draw", "Everything this service depends on answers."]
    : ready ? ["Waiting for a worker", "Tasks are accepted and wait. Start a worker with “streamapp worker”, or see below why none is ready."]
      : stopping ? ["Stopping", "Running work is finished or handed back; nothing new is taken."]
        : ["Not ready", reason.join(" · ") || "It is still starting."];
  text(byId("state"), title);
  text(byId("state-note"), note);
  document.body.dataset.state = !ready ? "not-ready" : drawing ? "ready" : "waiting";
  document.title = ready && drawing ? "streamapp status" : `${title} – streamapp status`;
  reconcile(byId("checks"), Object.entries(checks), ([name]) => name,
    () => h("li", { class: "check" }, h("span", { class: "mark", "data-part": "mark", "aria-hidden": "true" }),
      h("span", { "data-part": "name" }), h("span", { class: "check-say", "data-part": "say" })),
    (node, [name, check]) => {
      const { name: title, say } = parts(node);
      attr(node, "data-ok", check.ok ? "yes" : "no");
      attr(node, "title", check.ok ? `answered in ${check.ms ?? 0} ms` : check.message);
      text(title, WORDS[name] || name);
      text(say, check.ok ? "answers" : "does not answer");
    });
}

/** Whether this page still hears from the service: the small line at the top. */
export function showConnection(down, refusal) {
  if (!down) heard = Date.now();
  problem = down ? "No answer" : refusal && refusal.status !== 401 ? "Partly answering" : null;
  if (down) {
    text(byId("state"), "The service does not answer");
    text(byId("state-note"), heard ? "What is shown is the last that it said. Trying again." : "Is it running? Trying again.");
    document.body.dataset.state = "away";
  } else if (refusal && refusal.status !== 401) text(byId("state-note"), refusal.message);
  tell();
}

function tell() {
  const since = heard === null ? null : (Date.now() - heard) / 1000;
  const stale = since !== null && since > 8;
  attr(byId("pulse"), "data-live", problem || stale || since === null ? "no" : "yes");
  text(byId("pulse-text"), problem || (since === null ? "Connecting" : stale ? `Paused ${span(Math.floor(since))} ago` : "Live"));
}

/** Whether any worker is there that draws; without one the service is ready, but only to take tasks. */
export function showDrawing(some) {
  drawing = some;
}

/** Which process answered. */
export function showService(service) {
  const said = [
    service.version && `streamapp ${service.version}`,
    service.worker_id && `answered by ${service.worker_id}`,
    service.broker && (service.broker === "embedded" ? "embedded broker" : `Kafka, group ${service.app_id}`),
  ];
  text(byId("foot"), said.filter(Boolean).join(" · ") || " ");
}

/** Queued and running as the database has them; done and failed from the minutes of the last hour. */
export function showTotals(data) {
  const queue = data.queue ? sum(Object.values(data.queue)) : null;
  const minutes = (data.throughput || []).filter((row) => row.window === "minute");
  const waited = minutes.reduce((total, row) => total + (row.seconds?.queue || 0), 0);
  const hour = sum(minutes);
  const workers = (data.workers || []).filter((worker) => worker.role !== "web");
  const samples = workers.reduce((total, worker) => total + (worker.running || 0), 0);
  const seconds = Object.values(data.backlog || {}).reduce((total, model) => total + (model.seconds || 0), 0);
  text(byId("total-queued"), number(queue ? queue.queued || 0 : NaN));
  text(byId("note-queued"), !queue ? "the database does not answer" : seconds >= 0.05 ? `${span(seconds)} of work on the workers` : "no work waits on a worker");
  text(byId("total-running"), number(queue ? queue.running || 0 : NaN));
  text(byId("note-running"), `${count(samples, "image")} in the engines`);
  text(byId("total-done"), number(hour.finished || 0));
  text(byId("note-done"), [count(hour.images || 0, "image"), hour.finished && `${span(waited / hour.finished)} mean wait`].filter(Boolean).join(", "));
  text(byId("total-failed"), number(hour.failed || 0));
  const all = (hour.failed || 0) + (hour.finished || 0);
  text(byId("note-failed"), !all ? "no task has ended" : !hour.failed ? `none of ${count(all, "task")}` : `${((100 * hour.failed) / all).toFixed(1)} % of ${count(all, "task")}`);
  attr(byId("total-failed"), "data-tone", hour.failed ? "bad" : null);
}

/** Add up the numbers of objects, name by name. */
function sum(objects) {
  const total = {};
  for (const object of objects) {
    for (const [name, value] of Object.entries(object)) {
      if (typeof value === "number") total[name] = (total[name] || 0) + value;
    }
  }
  return total;
}

setInterval(tell, 1000);
