// The status page: asks every two seconds while somebody looks, and hands the answers to the parts of the page.

import { get, hasKey, keepKey, learnClock, readiness, Refused } from "./api.js";
import { byId, show, text } from "./dom.js";
import { draws, showModels, showResident, showWorkers } from "./workers.js";
import { showChart } from "./chart.js";
import { showConnection, showDrawing, showService, showState, showTotals } from "./header.js";
import { showTasks } from "./tasks.js";
import { openFromAddress } from "./sheet.js";
import { loadChoices, prepareForm } from "./try.js";

const EVERY = 2000;
const SLOWEST = 15000;
const TASKS = 18;

let timer = null;
let busy = false;
let failures = 0;
let chosen = false;

async function round() {
  if (busy || document.hidden) return;
  busy = true;
  clearTimeout(timer);
  try {
    const locked = !byId("key").hidden && !hasKey();
    const asked = locked ? [] : [get("/status?minutes=61"), get(`/image/tasks?limit=${TASKS}`)];
    const [state, status, tasks] = await Promise.allSettled([readiness(), ...asked]);
    if (locked) takeState(state);
    else take(state, status, tasks);
  } finally {
    busy = false;
    const wait = Math.min(EVERY * 2 ** Math.min(failures, 3), SLOWEST);
    if (!document.hidden) timer = setTimeout(round, wait);
  }
}

function takeState(state, refusal = null) {
  failures = state.status === "rejected" ? failures + 1 : 0;
  if (state.status === "fulfilled") showState(state.value);
  showConnection(state.reason || null, refusal);
}

function take(state, status, tasks) {
  const refusal = [status, tasks].map((one) => one.reason).find(Boolean) || null;
  askForKey(refusal instanceof Refused && refusal.status === 401 ? refusal : null);
  takeState(state, refusal);
  if (status.status === "fulfilled") {
    const data = status.value;
    learnClock(data.service?.now);
    showService(data.service || {});
    showDrawing((data.workers || []).some(draws));
    show(byId("reading"), data.service?.tables_ready === false);
    showTotals(data);
    showChart(data.throughput || []);
    showWorkers(data.workers || []);
    showModels(data.queue, data.backlog || {});
    showResident(data.lora_state || {});
  }
  if (status.status === "fulfilled" && !chosen) {
    chosen = true;
    loadChoices().catch(() => { chosen = false; });
  }
  if (tasks.status === "fulfilled") showTasks(tasks.value.tasks || []);
}

function askForKey(refusal) {
  const asked = !byId("key").hidden;
  show(byId("key"), Boolean(refusal));
  show(byId("content"), !refusal);
  if (!refusal) return;
  if (hasKey()) {
    text(byId("key-error"), "This key is not known here.");
    keepKey("");
  }
  if (!asked) byId("key-input").focus();
}

byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  keepKey(byId("key-input").value.trim());
  byId("key-input").value = "";
  text(byId("key-error"), "");
  round();
});

document.addEventListener("visibilitychange", () => {
  clearTimeout(timer);
  if (!document.hidden) round();
});

prepareForm(round);
openFromAddress();
round();
