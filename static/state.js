// The data of the page: the updates, the server's status, and what the user has chosen to see. Uses
// neither network nor document: `stream.js` and `drawing.js` change it, `words.js` and `drawing.js`
// render it, and every change calls the listener of `onChange`.
//
// All times are the server's. A `status` carries the server's clock, and performance.now() measures
// the time since, so this device's clock may be wrong, and may be set while the page is open.

// Bounds the memory of a tab that stays open. A day of updates at the default interval fits.
const KEEP_FOR = 24 * 3_600_000;
const KEEP_AT_MOST = 20_000;

// { timestamp, price, missed, broken }. `missed`: a gap event came before it; `broken`: updates before
// it are missing.
export const points = [];
export let source;
export let simulated;
export let interval; // how often to expect an update
export let hole; // updates are missing if the next one takes longer than this
export let phase = "connecting"; // or "open", "reconnecting", "held-back", "paused"
export let reason = null; // why prices are stale
export let latest = null; // timestamp of the newest update that the server has
export let span = Infinity; // how much of the past the chart shows, in milliseconds
export let cursor = null; // the time at which the user points

let stale = false;
let quoted = null; // the latest update from /price
let missed = false; // a `gap` came after the last update
let serverClock = null; // the server's clock minus performance.now()
let changed = () => {};

export function onChange(listener) {
  changed = listener;
}

// ---- Reading it

export const last = () => points[points.length - 1];
export const hasAll = () => latest === null || last()?.timestamp >= latest;

// The newest update, whether or not it is on the chart.
export function newest() {
  return quoted && !(last()?.timestamp >= quoted.timestamp) ? quoted : last();
}

// Whether updates are missing after the last one.
export const isOverdue = () => hasAll() && now() - last().timestamp > hole;

// The present, in the server's time.
export function now() {
  const clock = serverClock === null ? 0 : performance.now() + serverClock;
  return Math.max(clock, newest()?.timestamp ?? 0);
}

export function state() {
  if (phase !== "open") return phase;
  if (!hasAll()) return "catching-up";
  if (stale) return "stale";
  return latest === null ? "waiting" : "live";
}

// The part of the past that the chart shows, and the updates in it. Requires an update.
export function visible() {
  const to = now();
  // No wider than the data, except that the first few updates need some room.
  const from = Math.min(Math.max(to - span, points[0].timestamp), to - 4 * interval);
  const first = indexAt(from);
  const shown = points.slice(first);
  const prices = (shown.length ? shown : [last()]).map((point) => point.price);
  return { from, to, first, shown, low: Math.min(...prices), high: Math.max(...prices) };
}

// The index of the first update at `timestamp` or after it.
export function indexAt(timestamp) {
  let [low, high] = [0, points.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (points[middle].timestamp < timestamp) low = middle + 1;
    else high = middle;
  }
  return low;
}

// The index of the update nearest to the cursor, among those that are shown.
export function cursorIndex({ first, shown }) {
  if (cursor === null || !shown.length) return null;
  const after = Math.min(Math.max(indexAt(cursor), first), points.length - 1);
  const before = Math.max(after - 1, first);
  return cursor - points[before].timestamp < points[after].timestamp - cursor ? before : after;
}

// ---- Changing it

// Takes the attributes that the server writes into the page.
export function takePage(data) {
  source = data.source;
  simulated ??= data.simulated === "true"; // later each status says it
  interval = Number(data.intervalMs) || 5000;
  hole = 4 * interval;
  points.forEach(judge);
  changed();
}

export function setPhase(value) {
  phase = value;
  changed();
}

// Returns false if the status contradicts the updates held, which are then dropped.
export function takeStatus(status) {
  // Updates much newer than the server's newest one are not from its history: its clock was set back.
  const isBehind = status.latest !== null && last()?.timestamp - status.latest > hole;
  const hadPoints = points.length > 0;
  const isOther = isBehind || status.simulated !== simulated;
  if (isOther) dropAll();
  if (quoted?.timestamp > status.latest) quoted = null;
  ({ simulated, stale, reason, latest } = status);
  serverClock = status.now - performance.now();
  phase = "open";
  changed();
  return !(isOther && hadPoints);
}

// Returns false if the update contradicts the updates held, which are then dropped.
export function takeUpdate({ timestamp, price }) {
  const held = points[indexAt(timestamp)];
  if (held) {
    // A server's timestamps strictly increase, so this update is from another history.
    const isOther = held.timestamp !== timestamp || held.price !== price;
    if (isOther) dropAll();
    return !isOther;
  }
  points.push({ timestamp, price, missed });
  judge(last(), points.length - 1);
  missed = false;
  latest = Math.max(latest, timestamp);
  // The clock is behind if the status was delayed: it is at least at each update's timestamp.
  serverClock = Math.max(serverClock, timestamp - performance.now());
  forget();
  changed();
  return true;
}

export function takeGap() {
  missed = true;
}

// Takes the answer of /price and the server's time. Never mixes simulated prices with real ones.
export function takeQuote(update, isSimulated, time) {
  if (isSimulated !== simulated) return;
  quoted = update;
  if (phase !== "open") serverClock = time - performance.now();
  changed();
}

function judge(point, i) {
  point.broken = i > 0 && (point.missed || point.timestamp - points[i - 1].timestamp > hole);
}

function forget() {
  const byAge = indexAt(last().timestamp - KEEP_FOR);
  points.splice(0, Math.max(byAge, points.length - KEEP_AT_MOST));
  judge(points[0], 0); // nothing is before the first one any more
}

function dropAll() {
  points.length = 0;
  quoted = null;
  missed = false;
  cursor = null;
  span = Infinity;
}

export function showSpan(milliseconds) {
  span = milliseconds;
  changed();
}

export function moveCursor(time) {
  cursor = time;
  changed();
}
