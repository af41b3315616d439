// The status page: asks the API every two seconds while somebody looks, and changes only what changed.
import { drawChart } from "/static/chart.js";

const EVERY = 2000;
const TASKS = 18;
const STATES = {
  queued: ["wait", "waiting"], running: ["busy", "drawing"], succeeded: ["good", "done"],
  failed: ["bad", "failed"], cancelled: ["", "cancelled"], expired: ["wait", "expired"],
};
const $ = (id) => document.getElementById(id);
const whole = new Intl.NumberFormat("en");
let timer = 0;
let lastGood = 0;
let opened = null;

class NeedsKey extends Error {}

async function ask(path) {
  const key = sessionStorage.getItem("key");
  const answer = await fetch(path, { headers: key ? { Authorization: `Bearer ${key}` } : {}, cache: "no-store" });
  const body = await answer.json().catch(() => ({ message: `the service answered ${answer.status}` }));
  if (answer.status === 401) throw new NeedsKey(body.message);
  if (!answer.ok) throw new Error(body.message);
  return body.data;
}

function make(name, className, text) {
  const node = document.createElement(name);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

const put = (node, text) => { if (node.textContent !== text) node.textContent = text; };
const sum = (rows, pick) => rows.reduce((total, row) => total + (pick(row) || 0), 0);

function seconds(value) {
  if (value === null || !Number.isFinite(value)) return ["–", ""];
  if (value < 1) return [String(Math.round(value * 1000)), "ms"];
  if (value < 90) return [value < 10 ? value.toFixed(1) : String(Math.round(value)), "s"];
  if (value < 5400) return [String(Math.round(value / 60)), "min"];
  return [(value / 3600).toFixed(1), "h"];
}

const spoken = (value) => seconds(value).join(" ").trim();

function ago(iso, now) {
  const passed = (now - Date.parse(iso)) / 1000;
  return passed < 5 ? "just now" : `${spoken(passed)} ago`;
}

function tile(id, value, unit, note, bad = false) {
  const node = $(id);
  node.replaceChildren(value);
  if (unit) node.append(make("small", "", unit));
  const line = $(`${id}-note`);
  put(line, note);
  line.classList.toggle("bad", bad);
}

function showTiles(status) {
  const queue = Object.values(status.queue || {});
  const minutes = status.throughput.filter((row) => row.window === "minute");
  const drawers = status.workers.filter((worker) => worker.role !== "web");
  const ready = drawers.filter((worker) => worker.engine === "ready" && worker.state === "running");
  const work = sum(Object.values(status.backlog), (row) => row.seconds);
  const finished = sum(minutes, (row) => row.finished);
  const failed = sum(minutes, (row) => row.failed);
  const known = status.queue !== null;
  tile("t-queued", known ? whole.format(sum(queue, (row) => row.queued)) : "?", "",
    known ? "tasks not begun yet" : "the database does not answer", !known);
  tile("t-running", known ? whole.format(sum(queue, (row) => row.running)) : "?", "",
    work ? `${spoken(work)} of work at the workers` : "the workers are idle");
  tile("t-images", whole.format(sum(minutes, (row) => row.images)), "",
    failed ? `${whole.format(failed)} of ${whole.format(finished + failed)} tasks failed` : `${whole.format(finished)} ${finished === 1 ? "task" : "tasks"}, none failed`, failed > 0);
  const [wait, unit] = seconds(finished ? sum(minutes, (row) => row.seconds.queue) / finished : null);
  tile("t-wait", wait, unit, finished ? "mean of the last hour" : "nothing finished lately");
  const none = drawers.length === 0;
  tile("t-workers", String(ready.length), `of ${drawers.length}`,
    none ? "tasks wait for a worker" : ready.length < drawers.length ? "see below" : "all of them", ready.length < drawers.length || none);
}

// Children by key: what stays keeps its node, so pictures do not flicker and the focus stays where it is.
function keyed(list, rows, key, build, update) {
  const old = new Map([...list.children].map((node) => [node.dataset.key, node]));
  rows.forEach((row, index) => {
    const name = String(key(row));
    let node = old.get(name);
    old.delete(name);
    if (!node) {
      node = build(row);
      node.dataset.key = name;
    }
    update(node, row);
    if (list.children[index] !== node) list.insertBefore(node, list.children[index] || null);
  });
  for (const node of old.values()) node.remove();
}

function pill(node, kind, text) {
  node.className = `pill ${kind}`;
  put(node, text);
}

function buildWorker() {
  const node = make("li", "worker");
  const row = make("div", "row");
  row.append(make("b"), make("span", "pill"));
  const load = make("div", "load meter");
  load.append(make("span"));
  node.append(row, make("p", "facts"), load, make("div", "chips"));
  return node;
}

function updateWorker(node, worker, most, residents) {
  put(node.querySelector("b"), worker.worker_id);
  const fine = worker.engine === "ready" && worker.state === "running";
  const dead = worker.engine === "failed" || worker.engine === "closed";
  const idle = worker.running || worker.jobs ? ["busy", "drawing"] : ["good", "ready"];
  const [kind, word] = worker.role === "web" ? ["", "web only"] : fine ? idle
    : [dead ? "bad" : "wait", worker.state === "running" ? `engine ${worker.engine}` : worker.state];
  pill(node.querySelector(".pill"), kind, word);
  const held = sum(Object.values(worker.backlog), (row) => row.seconds);
  const facts = [worker.host];
  if (worker.role !== "web") {
    facts.push(worker.device, `${worker.running} in the batch`, `${whole.format(worker.jobs)} jobs held`);
    if (held) facts.push(`${spoken(held)} of work`);
    facts.push(`${whole.format(worker.done)} done`);
    if (worker.failed) facts.push(`${whole.format(worker.failed)} failed`);
    if (worker.full) facts.push("look-ahead full");
  }
  put(node.querySelector(".facts"), facts.join(" · "));
  const meter = node.querySelector(".load");
  meter.hidden = worker.role === "web";
  meter.firstChild.style.width = `${most ? Math.max(held ? 2 : 0, (held / most) * 100) : 0}%`;
  const chips = [
    ...Object.entries(residents.checkpoints).map(([name, tier]) => ["chip", name, tier]),
    ...Object.entries(residents.loras).map(([name, tier]) => ["chip lora", name, tier]),
  ];
  const list = node.querySelector(".chips");
  list.hidden = chips.length === 0;
  const text = JSON.stringify(chips);
  if (list.dataset.text === text) return;
  list.dataset.text = text;
  list.replaceChildren(...chips.map(([className, name, tier]) => {
    const chip = make("span", className, name);
    chip.append(make("i", "", tier));
    return chip;
  }));
}

function showWorkers(status) {
  const held = (worker) => sum(Object.values(worker.backlog), (row) => row.seconds);
  const most = Math.max(0, ...status.workers.map(held));
  const none = { checkpoints: {}, loras: {} };
  keyed($("workers"), status.workers, (worker) => worker.worker_id, buildWorker,
    (node, worker) => updateWorker(node, worker, most, status.lora_state[worker.worker_id] || none));
  $("workers-empty").hidden = status.workers.some((worker) => worker.role !== "web");
}

function showModels(status) {
  const names = [...new Set([...Object.keys(status.queue || {}), ...Object.keys(status.backlog)])].sort();
  const rows = names.map((name) => ({ name, ...(status.queue || {})[name], held: (status.backlog[name] || {}).seconds || 0 }));
  keyed($("models"), rows, (row) => row.name, () => {
    const node = make("tr");
    node.append(make("td"), ...Array.from({ length: 5 }, () => make("td", "n")));
    return node;
  }, (node, row) => {
    const cells = node.children;
    put(cells[0], row.name);
    [row.queued, row.running].forEach((value, index) => number(cells[index + 1], value || 0));
    put(cells[3], row.held ? spoken(row.held) : "–");
    cells[3].classList.toggle("zero", !row.held);
    number(cells[4], row.succeeded || 0);
    number(cells[5], row.failed || 0);
    cells[5].classList.toggle("bad", Boolean(row.failed));
  });
  $("models-empty").hidden = rows.length > 0;
}

function number(cell, value) {
  put(cell, whole.format(value));
  cell.classList.toggle("zero", value === 0);
}

function buildTask() {
  const node = make("li");
  const card = make("button", "task");
  card.type = "button";
  const thumb = make("span", "thumb");
  thumb.append(make("span", "word"));
  const meter = make("span", "meter");
  meter.append(make("span"));
  const about = make("span", "about");
  const meta = make("span", "meta");
  meta.append(make("span", "pill"), make("time"));
  about.append(make("span", "text"), meta);
  card.append(thumb, meter, about);
  node.append(card);
  return node;
}

// Addresses are signed anew each time; the picture behind them is the same.
const bare = (address) => address.split("?")[0];

function updateTask(node, task, now) {
  const [kind, word] = STATES[task.status] || ["", task.status];
  const card = node.firstChild;
  card.onclick = () => openDetail(task.task_id);
  pill(node.querySelector(".pill"), kind, task.status === "running" ? `${Math.floor(task.progress)} %` : word);
  put(node.querySelector(".text"), task.text);
  put(node.querySelector("time"), ago(task.ended_at || task.submitted_at, now));
  const meter = node.querySelector(".meter");
  meter.firstChild.style.width = `${task.status === "running" ? task.progress : 0}%`;
  const thumb = node.querySelector(".thumb");
  const first = task.images[0];
  put(thumb.querySelector(".word"), first ? "" : word);
  let image = thumb.querySelector("img");
  if (first && (!image || image.dataset.bare !== bare(first.url))) {
    image?.remove();
    image = make("img");
    image.alt = task.text;
    image.decoding = "async";
    image.dataset.bare = bare(first.url);
    image.src = first.url;
    image.onerror = () => { image.remove(); put(thumb.querySelector(".word"), "picture not found"); };
    thumb.append(image);
  }
  let more = thumb.querySelector(".more");
  if (task.images.length > 1 && !more) thumb.append((more = make("span", "more")));
  if (more) put(more, `${task.images.length} pictures`);
}

function showTasks(tasks, now) {
  keyed($("tasks"), tasks, (task) => task.task_id, buildTask, (node, task) => updateTask(node, task, now));
  $("tasks-empty").hidden = tasks.length > 0;
}

async function openDetail(id) {
  opened = id;
  try {
    const task = await ask(`/api/v1/image/task/${encodeURIComponent(id)}`);
    if (opened !== id) return;
    put($("d-title"), task.text);
    const facts = [STATES[task.status]?.[1] || task.status, task.model, task.delivered_at, task.priority];
    if (task.worker_id) facts.push(task.worker_id);
    if (task.timings.denoise !== undefined) facts.push(`drawn in ${spoken(task.timings.denoise)}`);
    if (task.queue_position !== null) facts.push(`${whole.format(task.queue_position)} before it`);
    put($("d-sub"), `${facts.join(" · ")} — ${task.task_id}`);
    $("d-error").hidden = !task.error;
    put($("d-error"), task.error ? task.error.message || JSON.stringify(task.error) : "");
    $("d-pictures").replaceChildren(...task.images.map((picture) => {
      const link = make("a");
      link.href = picture.url;
      link.target = "_blank";
      link.rel = "noopener";
      const image = make("img");
      image.src = picture.url;
      image.alt = task.text;
      link.append(image, make("span", "", `seed ${picture.seed}`));
      return link;
    }));
    $("d-notes").replaceChildren(...task.notes.map((note) => make("li", "", note)));
    put($("d-recipe"), JSON.stringify(task.recipe, null, 2));
    put($("d-copy"), "Copy recipe");
    $("detail").showModal();
  } catch (error) {
    trouble(error.message);
  }
}

function trouble(text) {
  $("trouble").hidden = !text;
  put($("trouble"), text || "");
}

function live(kind, text) {
  $("live").className = `live ${kind}`;
  put($("live-text"), text);
}

async function refresh() {
  clearTimeout(timer);
  try {
    const [status, list] = await Promise.all([ask("/api/v1/status"), ask(`/api/v1/image/tasks?limit=${TASKS}`)]);
    const now = Date.parse(status.service.now);
    lastGood = Date.now();
    showTiles(status);
    drawChart($("chart"), status.throughput, now);
    showWorkers(status);
    showModels(status);
    showTasks(list.tasks, now);
    const { service } = status;
    put($("foot"), `streamapp ${service.version} · seen from ${service.worker_id} (${service.role}) · ${service.broker} broker · group ${service.app_id}`);
    $("key-form").hidden = true;
    trouble(service.tables_ready ? "" : "This process is still reading its tables: what it shows about workers may be old.");
    live("on", "live");
  } catch (error) {
    if (error instanceof NeedsKey) {
      $("key-form").hidden = false;
      put($("key-error"), sessionStorage.getItem("key") ? error.message : "");
      live("", "locked");
      return;
    }
    const since = lastGood ? `, last heard ${spoken((Date.now() - lastGood) / 1000)} ago` : "";
    live("off", `no answer${since}`);
    trouble(error instanceof TypeError ? "" : error.message);
  }
  if (!document.hidden) timer = setTimeout(refresh, EVERY);
}

$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("key", $("key").value.trim());
  refresh();
});
$("d-copy").addEventListener("click", async () => {
  await navigator.clipboard.writeText($("d-recipe").textContent);
  put($("d-copy"), "Copied");
});
$("detail").addEventListener("close", () => { opened = null; });
document.addEventListener("visibilitychange", () => { if (!document.hidden) refresh(); });
refresh();
