// The form: submits through the same API as everybody, and follows the task live.

import { attr, bar, byId, fill, h, show, text } from "./dom.js";
import { ended } from "./format.js";
import { follow, get, post, remove, taskPath } from "./api.js";
import { openSheet } from "./sheet.js";
import { showPicture } from "./tasks.js";

const FIELDS = { text: "try-text", style: "try-style", resolution: "try-resolution", seed: "try-seed", priority: "try-priority", model: "try-model" };

let watching = null;
let task = null;
let changed = () => {};

/** Wire up the form; `onChange` is called when a task was made or has ended. */
export function prepareForm(onChange) {
  changed = onChange;
  const progress = bar("Progress of your task");
  byId("try-bar").append(progress);
  byId("try").addEventListener("submit", (event) => {
    event.preventDefault();
    submit();
  });
  byId("try-text").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) submit();
  });
  byId("try").addEventListener("input", () => refuse(null));
  byId("try-picture").addEventListener("click", () => { if (task) openSheet(task.task_id); });
  byId("try-cancel").addEventListener("click", cancel);
  document.addEventListener("use-recipe", (event) => reuse(event.detail));
}

/** Offer the styles and models that the service has. */
export async function loadChoices() {
  const choices = await get("/models");
  const styles = (choices.styles || []).map((style) => h("option", { value: style.name, title: style.adds }, style.name));
  byId("try-style").replaceChildren(h("option", { value: "" }, "None"), ...styles);
  const models = choices.models || [];
  byId("try-model").replaceChildren(...models.map((model) => h("option", { value: model.name }, model.title || model.name)));
  show(byId("try-model-field"), models.length > 1);
  const native = models[0]?.native;
  if (models.length === 1 && native) {
    const sizes = [...byId("try-resolution").options];
    text(sizes[0], native);
    sizes.find((size) => size.value === native)?.remove();
  }
}

function read() {
  const value = (name) => byId(FIELDS[name]).value.trim();
  const params = {};
  for (const name of ["style", "resolution"]) if (value(name)) params[name] = value(name);
  if (value("seed")) params.seed = Number(value("seed"));
  if (!byId("try-model-field").hidden) params.model = value("model");
  return { text: value("text"), params, priority: Number(value("priority")) };
}

async function submit() {
  const asked = read();
  if (!asked.text) return refuse("Say what the picture shall show.", "text");
  if (Number.isNaN(asked.params.seed)) return refuse("A seed is a whole number, or nothing for a random one.", "seed");
  refuse(null);
  byId("try-submit").disabled = true;
  try {
    const accepted = await post("/image/generate", { ...asked, idempotency_key: token() });
    start(accepted);
    changed();
  } catch (error) {
    refuse(error.message, (error.field || "").split(".").pop());
  } finally {
    byId("try-submit").disabled = false;
  }
  return undefined;
}

/** Random, and also there where the page came over plain HTTP. */
function token() {
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

function refuse(message, field = null) {
  text(byId("try-error"), message);
  for (const [name, id] of Object.entries(FIELDS)) {
    const wrong = Boolean(message) && name === field;
    attr(byId(id), "aria-invalid", wrong ? "true" : null);
    attr(byId(id), "aria-describedby", wrong ? "try-error" : null);
    if (wrong) byId(id).focus();
  }
}

async function start(accepted) {
  watching?.abort();
  watching = new AbortController();
  const { signal } = watching;
  task = accepted;
  show(byId("try-result"), true);
  showPicture(byId("try-picture"), null, "");
  render();
  try {
    await follow(task.task_id, (change) => {
      if (signal.aborted) return;
      task = { ...task, ...change };
      render();
    }, signal);
  } catch (error) {
    text(byId("try-note"), error.message);
  }
  if (!signal.aborted) changed();
}

function render() {
  const over = ended(task.status);
  const words = { fetching: "Fetching the model", queued: "Waiting for a worker", running: "Drawing", succeeded: "Done", failed: "Failed", cancelled: "Cancelled", expired: "Expired" };
  text(byId("try-state"), words[task.status] || task.status);
  attr(byId("try-state"), "data-tone", task.status === "failed" || task.status === "expired" ? "bad" : null);
  fill(byId("try-bar").firstElementChild, (task.progress || 0) / 100);
  const drawn = task.status === "running" && `${Math.floor(task.progress || 0)} %`;
  text(byId("try-note"), task.error?.message || drawn || (task.notes || []).join(" ") || task.task_id);
  show(byId("try-cancel"), !over);
  byId("try-cancel").disabled = Boolean(task.cancel_requested);
  attr(byId("try-picture"), "data-state", task.images?.length ? "drawn" : task.status);
  showPicture(byId("try-picture"), task.images?.[0]?.url, task.text || "Your picture");
}

async function cancel() {
  byId("try-cancel").disabled = true;
  try {
    await remove(taskPath(task.task_id));
  } catch (error) {
    text(byId("try-note"), error.message);
  }
}

/** Fill the form with what a recipe holds of its fields. */
function reuse(recipe) {
  if (!recipe) return;
  const params = recipe.params || {};
  byId("try-text").value = recipe.text || "";
  byId("try-seed").value = params.seed ?? "";
  for (const name of ["style", "resolution", "model"]) choose(byId(FIELDS[name]), params[name] || "");
  byId("try-text").focus();
}

function choose(select, value) {
  if (select === byId("try-resolution") && value && ![...select.options].some((option) => option.value === value)) {
    select.append(h("option", { value }, value));
  }
  if ([...select.options].some((option) => option.value === value)) select.value = value;
}
