// Figures, times and states in the words that people read.

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const compact = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });
const time = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", hourCycle: "h23" });
const moment = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });

/** `12,345`; from a million on `1.2M`; a dash for what is not known. */
export function number(value) {
  if (!Number.isFinite(value)) return "–";
  return Math.abs(value) >= 1e6 ? compact.format(value) : whole.format(value);
}

/** `1 job`, `3 jobs`. */
export function count(value, one, many = `${one}s`) {
  return `${number(value)} ${value === 1 ? one : many}`;
}

/** A span of seconds: `0.31 s`, `4.2 s`, `3 min 20 s`, `2 h 5 min`. */
export function span(seconds) {
  if (!Number.isFinite(seconds)) return "–";
  if (seconds < 0.0005) return "0 s";
  if (seconds < 1) return `${seconds.toFixed(2)} s`;
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  const total = Math.round(seconds);
  if (total < 60) return `${total} s`;
  if (total < 3600) return join(Math.floor(total / 60), "min", total % 60, "s");
  if (total < 86400) return join(Math.floor(total / 3600), "h", Math.round((total % 3600) / 60), "min");
  return join(Math.floor(total / 86400), "d", Math.round((total % 86400) / 3600), "h");
}

function join(big, bigUnit, small, smallUnit) {
  return small ? `${big} ${bigUnit} ${small} ${smallUnit}` : `${big} ${bigUnit}`;
}

/** How long ago, coarse so that it seldom changes: `just now`, `12 s ago`, `5 min ago`. */
export function ago(ms, now) {
  if (!Number.isFinite(ms)) return "–";
  const seconds = Math.max(0, (now - ms) / 1000);
  if (seconds < 5) return "just now";
  if (seconds < 60) return `${Math.floor(seconds / 5) * 5} s ago`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ago`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h ago`;
  return `${Math.floor(seconds / 86400)} d ago`;
}

/** `14:05`. */
export const clock = (ms) => time.format(ms);

/** Date and time. */
export const full = (ms) => (Number.isFinite(ms) ? moment.format(ms) : "–");

/** Milliseconds from what an answer holds: milliseconds, or an ISO 8601 time. */
export function toMs(value) {
  if (typeof value === "number") return value;
  return typeof value === "string" ? Date.parse(value) : NaN;
}

/** Partition numbers as ranges: `0–3, 7`. */
export function ranges(numbers) {
  const sorted = [...numbers].sort((a, b) => a - b);
  const out = [];
  for (let i = 0; i < sorted.length; i += 1) {
    const first = sorted[i];
    while (i + 1 < sorted.length && sorted[i + 1] === sorted[i] + 1) i += 1;
    out.push(first === sorted[i] ? `${first}` : `${first}–${sorted[i]}`);
  }
  return out.join(", ");
}

const ENDED = new Set(["succeeded", "failed", "cancelled", "expired"]);

/** Whether nothing will change any more. */
export const ended = (state) => ENDED.has(state);

/** The tone in which a state is shown: `good`, `busy`, `wait`, `bad` or `calm`. */
export function tone(state) {
  const tones = {
    succeeded: "good", ready: "good", running: "busy", restarting: "wait", starting: "wait", draining: "wait",
    fetching: "calm", queued: "calm", cancelled: "calm", closed: "calm", gone: "calm", failed: "bad", expired: "bad",
  };
  return tones[state] || "calm";
}

const TIERS = { vram: "VRAM", ram: "RAM", disk: "disk" };

/** A tier of memory as people write it. */
export const tier = (name) => TIERS[String(name).toLowerCase()] || String(name);
