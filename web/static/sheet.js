// One task in full: pictures, what happened, the recipe. `#task=ID` in the address opens it too.

import { attr, bar, byId, copyButton, fill, h, parts, reconcile, show, text } from "./dom.js";
import { ended, full, number, span, toMs, tone } from "./format.js";
import { follow, get, remove, taskPath } from "./api.js";
import { showPicture } from "./tasks.js";

const STAGES = ["queue", "load", "encode", "denoise", "decode", "post"];

let watching = null;
let current = null;
let body = null;

/** Open the panel for a task and keep it up to date until it is closed. */
export function openSheet(id) {
  const sheet = byId("sheet");
  watching?.abort();
  watching = new AbortController();
  current = null;
  body = build(id);
  byId("sheet-body").replaceChildren(body);
  if (!sheet.open) sheet.showModal();
  byId("sheet-title").focus();
  history.replaceState(null, "", `#task=${encodeURIComponent(id)}`);
  load(id, watching.signal);
}

/** Open what the address of the page names. */
export function openFromAddress() {
  const id = new URLSearchParams(location.hash.slice(1)).get("task");
  if (id) openSheet(id);
}

async function load(id, signal) {
  try {
    take(await get(taskPath(id)), signal);
    if (current && !ended(current.status)) await follow(id, (change) => take(change, signal), signal);
  } catch (error) {
    if (!signal.aborted) text(parts(body).error, error.message);
  }
}

function take(change, signal) {
  if (signal.aborted) return;
  current = { ...current, ...change };
  update(current);
}

function build(id) {
  const progress = bar("Progress");
  progress.dataset.part = "bar";
  const cancel = h("button", { type: "button", class: "button small", "data-part": "cancel", hidden: true }, "Cancel this task");
  cancel.addEventListener("click", () => stop(id, cancel));
  const again = h("button", { type: "button", class: "button small" }, "Use in the form");
  again.addEventListener("click", () => {
    byId("sheet").close();
    document.dispatchEvent(new CustomEvent("use-recipe", { detail: current?.recipe }));
  });
  return h("div", { class: "sheet-parts" },
    h("p", { class: "sheet-line" }, h("span", { class: "badge", "data-part": "state" }), h("span", { class: "mono quiet", "data-part": "id" }, id)),
    h("blockquote", { class: "sheet-text", "data-part": "text" }),
    h("p", { class: "field-error", "data-part": "error", role: "alert" }),
    h("div", { "data-part": "progress", hidden: true }, progress, h("p", { class: "quiet", "data-part": "position" })),
    h("ul", { class: "sheet-pictures", "data-part": "pictures" }),
    h("ul", { class: "sheet-notes", "data-part": "notes" }),
    h("div", { class: "actions" }, cancel),
    h("section", { "data-part": "timings-part", hidden: true }, h("h3", {}, "Where the time went"), h("ul", { class: "stages", "data-part": "timings" })),
    h("section", { "data-part": "facts-part", hidden: true }, h("h3", {}, "Facts"), h("dl", { class: "lines", "data-part": "facts" })),
    h("section", { "data-part": "history-part", hidden: true }, h("h3", {}, "Earlier attempts"), h("ol", { class: "sheet-history", "data-part": "history" })),
    h("section", { "data-part": "recipe-part", hidden: true },
      h("header", { class: "panel-head" }, h("h3", {}, "Recipe"),
        h("div", { class: "actions" }, again, copyButton(() => parts(body).recipe.textContent))),
      h("p", { class: "quiet" }, "Submitted again as it is, it draws the same pictures."),
      h("pre", { class: "code", tabindex: 0, "data-part": "recipe" })));
}

function update(task) {
  const at = parts(body);
  const over = ended(task.status);
  text(at.state, task.status);
  attr(at.state, "data-tone", tone(task.status));
  text(at.error, task.error ? task.error.message || task.error.code || String(task.error) : "");
  show(at.progress, !over);
  fill(at.bar, (task.progress || 0) / 100);
  text(at.position, position(task));
  show(at.cancel, !over && !task.cancel_requested);
  text(at.text, task.text ?? task.recipe?.text ?? "");
  reconcile(at.notes, task.notes || [], (note) => note, (note) => h("li", {}, note), () => {});
  reconcile(at.pictures, task.images || [], (image) => image.index,
    () => h("li", {}, h("a", { target: "_blank", rel: "noopener", "data-part": "link" }, h("div", { class: "thumb", "data-part": "thumb" })),
      h("p", { class: "quiet", "data-part": "say" })),
    (node, image) => {
      const inside = parts(node);
      attr(inside.link, "href", image.url);
      showPicture(inside.thumb, image.url, `${task.text ?? "Picture"}, number ${image.index + 1}`);
      text(inside.say, `${image.width} × ${image.height} · seed ${image.seed}`);
    });
  timings(at, task);
  facts(at, task);
  attempts(at, task);
  show(at["recipe-part"], Boolean(task.recipe));
  if (task.recipe) text(at.recipe, JSON.stringify(task.recipe, null, 2));
}

function position(task) {
  if (task.cancel_requested) return "It stops between two steps.";
  if (task.status !== "queued") return `${Math.floor(task.progress || 0)} %`;
  if (!Number.isFinite(task.queue_position)) return "Waiting for a worker.";
  return task.queue_position ? `${number(task.queue_position)} tasks go before it.` : "It is the next one.";
}

function timings(at, task) {
  const known = Object.entries(task.timings || {}).filter(([, value]) => typeof value === "number");
  known.sort(([a], [b]) => (STAGES.indexOf(a) + 99) % 99 - (STAGES.indexOf(b) + 99) % 99);
  const most = Math.max(1e-9, ...known.map(([, value]) => value));
  show(at["timings-part"], known.length > 0);
  reconcile(at.timings, known, ([name]) => name,
    ([name]) => h("li", {}, h("span", {}, name), h("div", { "data-part": "holder" }, bar(`${name}, share of the longest stage`)),
      h("span", { class: "figure", "data-part": "say" })),
    (node, [, value]) => {
      fill(parts(node).holder.firstElementChild, value / most);
      text(parts(node).say, span(value));
    });
}

function facts(at, task) {
  const known = [
    ["Model", task.model && `${task.model} (${task.family})`],
    ["Size", task.drawn_at && (task.drawn_at === task.delivered_at ? task.drawn_at : `${task.delivered_at}, drawn at ${task.drawn_at}`)],
    ["Priority", task.priority],
    ["Worker", task.worker_id],
    ["Attempts", task.attempts !== undefined && (task.max_attempts ? `${task.attempts} of ${task.max_attempts}` : String(task.attempts))],
    ["Submitted", task.submitted_at && full(toMs(task.submitted_at))],
    ["Started", task.started_at && full(toMs(task.started_at))],
    ["Ended", task.ended_at && full(toMs(task.ended_at))],
    ["Deadline", task.deadline_at && full(toMs(task.deadline_at))],
    ["Callback", task.callback_url],
    ["Error code", task.error?.code],
  ].filter(([, value]) => value);
  show(at["facts-part"], known.length > 0);
  reconcile(at.facts, known, ([name]) => name,
    ([name]) => h("div", {}, h("dt", {}, name), h("dd", { "data-part": "value" })),
    (node, [, value]) => text(parts(node).value, value));
}

function attempts(at, task) {
  const history = (task.history || []).map((entry, i) => ({ entry, i }));
  show(at["history-part"], history.length > 0);
  reconcile(at.history, history, ({ i }) => i, () => h("li", {}),
    (node, { entry }) => text(node, [entry.message || entry.code || entry.reason || JSON.stringify(entry), entry.worker_id].filter(Boolean).join(" · ")));
}

async function stop(id, button) {
  button.disabled = true;
  try {
    take({ cancel_requested: true, ...(await remove(taskPath(id))) }, watching.signal);
  } catch (error) {
    text(parts(body).error, error.message);
  } finally {
    button.disabled = false;
  }
}

byId("sheet").addEventListener("close", () => {
  watching?.abort();
  history.replaceState(null, "", location.pathname + location.search);
});
byId("sheet").addEventListener("click", (event) => {
  if (event.target === byId("sheet")) byId("sheet").close();
});
byId("sheet-close").addEventListener("click", () => byId("sheet").close());
