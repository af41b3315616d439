// Talks to the service: JSON calls, live events, the API key of this tab.

const API = "/api/v1";
const KEY = "streamapp.api-key";

/** Milliseconds that the service's clock is ahead of this computer's. */
let ahead = 0;

/** The time at the service, in milliseconds. */
export const serviceNow = () => Date.now() + ahead;

/** Learn the service's clock from a time it said; an answer takes less than the error that matters here. */
export function learnClock(iso) {
  const there = Date.parse(iso);
  if (Number.isFinite(there)) ahead = there - Date.now();
}

/** An answer that is not what was asked for: `status` 0 means that nobody answered. */
export class Refused extends Error {
  constructor(status, body = {}) {
    super(body.message || (status ? `The service answered ${status}.` : "The service does not answer."));
    this.status = status;
    this.code = body.code;
    this.field = body.field;
  }
}

/** Keep a key for as long as this tab is open; an empty one forgets it. */
export function keepKey(key) {
  if (key) sessionStorage.setItem(KEY, key);
  else sessionStorage.removeItem(KEY);
}

/** Whether a key was given in this tab. */
export const hasKey = () => Boolean(sessionStorage.getItem(KEY));

function headers(more = {}) {
  const key = sessionStorage.getItem(KEY);
  return key ? { ...more, Authorization: `Bearer ${key}` } : more;
}

async function ask(path, options = {}) {
  try {
    return await fetch(path, { cache: "no-store", ...options, headers: headers(options.headers) });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused(0);
  }
}

async function json(response) {
  try {
    return await response.json();
  } catch {
    return {};
  }
}

async function call(path, options) {
  const response = await ask(API + path, options);
  const body = await json(response);
  if (!response.ok) throw new Refused(response.status, body);
  return body.data ?? body;
}

/** The `data` of a GET below `/api/v1`. */
export const get = (path) => call(path);

/** POST `body` as JSON. */
export const post = (path, body) => call(path, {
  method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body),
});

/** DELETE. */
export const remove = (path) => call(path, { method: "DELETE" });

/** The address of a task below `/api/v1`. */
export const taskPath = (id) => `/image/task/${encodeURIComponent(id)}`;

/** What `/readyz` says: `{ready, status, checks}`; readiness needs no key. */
export async function readiness() {
  const response = await ask("/readyz");
  const body = await json(response);
  return { ready: response.ok, status: body.status || "", checks: body.checks || {} };
}

/**
 * Follow a task (server-sent events) until it has ended or `signal` aborts; `seen` gets every change, the last one
 * being the whole task. Read with fetch, because EventSource cannot send an API key. A broken stream goes on after
 * the last event seen.
 */
export async function follow(id, seen, signal) {
  let last = null;
  while (!signal.aborted) {
    let over = false;
    try {
      const response = await ask(`${API}${taskPath(id)}/events`, {
        signal, headers: last === null ? { Accept: "text/event-stream" } : { "Last-Event-ID": last },
      });
      if (response.status === 204) return;
      if (!response.ok) throw new Refused(response.status, await json(response));
      for await (const event of eventsOf(response.body)) {
        if (event.id !== null) last = event.id;
        const data = JSON.parse(event.data);
        seen(data);
        over = ["succeeded", "failed", "cancelled", "expired"].includes(data.status);
      }
    } catch (error) {
      if (signal.aborted) return;
      if (error instanceof Refused && error.status >= 400 && error.status < 500 && error.status !== 429) throw error;
    }
    if (over) return;
    await new Promise((resolve) => { setTimeout(resolve, 1000); });
  }
}

/** The events of a stream as `{id, data}` (HTML standard, section 9.2.6). */
async function* eventsOf(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let id = null;
  let data = [];
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const lines = (rest + value).split(/\r\n|\n/);
      rest = lines.pop();
      for (const line of lines) {
        if (line === "") {
          if (data.length) yield { id, data: data.join("\n") };
          data = [];
        } else if (line.startsWith("data:")) data.push(line.slice(5).replace(/^ /, ""));
        else if (line.startsWith("id:")) id = line.slice(3).trim();
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
