// What the page knows: the updates, what the server says about them, and what the reader has
// chosen to see. No network and no document: `stream.js` and `drawing.js` report here, `words.js`
// and `drawing.js` show it, and every change calls the listener of `onChange`.
//
// All times are the server's. A `status` carries its clock, and performance.now() counts on from
// there, so the clock of this device may be wrong, and may be set at any moment.

const KEEP_FOR = 24 * 3_600_000; // a tab that stays open must not grow without bound:
const KEEP_AT_MOST = 20_000; // a day of updates at the usual interval fits

export const points = []; // { timestamp, price, missed, broken }: broken if updates before it are missing
export let source;
export let simulated;
export let interval; // how often to expect an update
export let hole; // updates are missing if the next one takes longer than this
export let phase = "connecting"; // or "open", "reconnecting", "held-back", "paused"
export let reason = null; // why the source fails, if prices are stale
export let latest = null; // timestamp of the newest update that the server has
export let span = Infinity; // how much of the past the chart shows
export let cursor = null; // the time that the reader points at

let stale = false;
let quoted = null; // from /price, while the stream has not brought an update as new
let missed = false; // updates are missing after the last one
let serverClock = null; // the server's clock minus performance.now()
let changed = () => {};

export function onChange(listener) {
  changed = listener;
}

// ---- Reading it

export const last = () => points[points.length - 1];
export const hasAll = () => latest === null || last()?.timestamp >= latest;

// The newest update that is known, on the chart or not yet.
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

// The part of the past that the chart shows, and the updates in it.
export function visible() {
  const to = now();
  // No wider than what there is, except that the first few updates need some room.
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

// What the server has written into the page.
export function takePage(data) {
  source = data.source;
  simulated ??= data.simulated === "true"; // later the status says so
  interval = Number(data.intervalMs) || 5000;
  hole = 4 * interval;
  points.forEach(judge);
  changed();
}

export function setPhase(value) {
  phase = value;
  changed();
}

// Returns false if it contradicts what the page holds, which is then dropped.
export function takeStatus(status) {
  // The server never sent what is so much newer than its newest update: its clock was corrected.
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

// Returns false if it contradicts what the page holds, which is then dropped.
export function takeUpdate({ timestamp, price }) {
  const held = points[indexAt(timestamp)];
  if (held) {
    // Every update of a server is newer than the one before, so this is another server.
    const isOther = held.timestamp !== timestamp || held.price !== price;
    if (isOther) dropAll();
    return !isOther;
  }
  points.push({ timestamp, price, missed });
  judge(last(), points.length - 1);
  missed = false;
  latest = Math.max(latest, timestamp);
  // If a connection brings a status late, the update after it shows by how much.
  serverClock = Math.max(serverClock, timestamp - performance.now());
  forget();
  changed();
  return true;
}

export function takeGap() {
  missed = true;
}

// The answer of /price, and the server's time in it. It never mixes simulated prices with real ones.
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
  let gone = Math.max(0, points.length - KEEP_AT_MOST);
  while (points[gone].timestamp < last().timestamp - KEEP_FOR) gone++;
  points.splice(0, gone);
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
