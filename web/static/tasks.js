// The newest tasks as a grid; one click opens the whole story.

import { attr, bar, byId, fill, h, parts, reconcile, show, text } from "./dom.js";
import { ago, ended, full, span, toMs, tone } from "./format.js";
import { serviceNow } from "./api.js";
import { openSheet } from "./sheet.js";

/** Addresses are signed anew with every answer: a picture is loaded again only if it is another one. */
export function showPicture(holder, url, alt) {
  let image = holder.querySelector("img");
  if (!url) {
    image?.remove();
    return;
  }
  const path = new URL(url, location.href).pathname;
  if (image?.dataset.path !== path) {
    const fresh = h("img", { alt, decoding: "async" });
    fresh.dataset.path = path;
    fresh.addEventListener("error", () => {
      fresh.remove();
      attr(holder, "data-missing", "yes");
    });
    attr(holder, "data-missing", null);
    fresh.src = url;
    if (image) image.replaceWith(fresh);
    else holder.prepend(fresh);
    image = fresh;
  }
  attr(image, "alt", alt);
}

function create(task) {
  const open = h("button", { type: "button", class: "task-open", "data-part": "open" },
    h("span", { class: "task-text", "data-part": "text" }));
  open.addEventListener("click", () => openSheet(task.task_id));
  const progress = bar("Progress");
  progress.dataset.part = "bar";
  return h("li", { class: "task" },
    h("div", { class: "thumb", "data-part": "thumb" }, h("span", { class: "thumb-say", "data-part": "say" }), progress),
    h("div", { class: "task-body" },
      open,
      h("p", { class: "task-line" }, h("span", { class: "badge", "data-part": "state" }), h("span", { class: "quiet", "data-part": "took" })),
      h("p", { class: "quiet task-line" }, h("span", { class: "cut", "data-part": "model" }), h("span", { "data-part": "age" }))));
}

function update(node, task) {
  const at = parts(node);
  const over = ended(task.status);
  const words = task.text ?? task.recipe?.text ?? task.task_id;
  const image = task.images?.[0];
  text(at.text, words);
  attr(at.open, "title", words);
  text(at.state, task.status);
  attr(at.state, "data-tone", tone(task.status));
  const when = toMs(task.ended_at ?? task.started_at ?? task.submitted_at);
  text(at.age, ago(when, serviceNow()));
  attr(at.age, "title", full(when));
  fill(at.bar, (task.progress || 0) / 100);
  show(at.bar, !over);
  const n = task.batch_size || task.images?.length || 1;
  text(at.model, n > 1 ? `${n} × ${task.model}` : task.model);
  text(at.took, over ? took(task) : task.worker_id);
  showPicture(at.thumb, image?.url, words);
  text(at.say, image ? "" : task.status === "running" ? `${Math.floor(task.progress || 0)} %` : task.error?.message || "");
  attr(at.thumb, "data-state", image ? "drawn" : task.status);
}

function took(task) {
  const seconds = (toMs(task.ended_at) - toMs(task.started_at)) / 1000;
  return task.status === "succeeded" && seconds >= 0 ? span(seconds) : "";
}

/** Show the newest tasks. */
export function showTasks(tasks) {
  show(byId("tasks-empty"), !tasks.length);
  const open = tasks.filter((task) => !ended(task.status)).length;
  text(byId("tasks-note"), tasks.length ? `the newest ${tasks.length}${open ? `, ${open} not ended` : ""}` : "");
  reconcile(byId("tasks"), tasks, (task) => task.task_id, create, update);
}
