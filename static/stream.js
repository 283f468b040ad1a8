// The connection to the server: the stream, and /price while the stream does not bring what it
// should. It reports everything to `state.js` and shows nothing.
//
// Over HTTP/1.1 a browser opens six connections to a host, however many tabs want one. So the
// tabs share a BroadcastChannel: one that connects says so, and every hidden tab that hears it
// pauses its own stream until it is shown again, or until another tab is closed.

import * as state from "./state.js";

const SILENT = 5000; // a stream begins with a status, so an attempt this long without one is silent
const HELD_BACK_AFTER = 2; // silent attempts
const LONGEST_PAUSE = 30_000;
const BROWSER_WAITS = 5000; // at most, before it reconnects: the server's `retry`

const tabs = new BroadcastChannel("btc-ticker");
let stream = null; // null while paused
let retry;
let failures = 0; // in a row
let silentAttempts = 0; // in a row
let isSilent; // whether this attempt has brought nothing yet
let heard; // when the stream last brought something, or is opened
let caughtUp; // when the page last had all
let nextQuote = 0;
let sleepClock = Date.now() - performance.now();

export function start() {
  tabs.onmessage = ({ data }) => (data === "connecting" ? pauseIfHidden() : resumeIfPaused());
  addEventListener("pagehide", leave);
  addEventListener("pageshow", (event) => event.persisted && connectAnew());
  addEventListener("online", () => stream && state.phase !== "open" && connect());
  document.addEventListener("visibilitychange", onVisibility);
  setInterval(check, 1000);
  connect();
}

function connect() {
  clearTimeout(retry);
  stream?.close();
  tabs.postMessage("connecting");
  startWaiting();
  // A browser that reconnects on its own sends the last id, which takes precedence over `since`.
  stream = new EventSource(`stream?since=${state.last()?.timestamp ?? 0}`);
  stream.onerror = onError;
  stream.onmessage = (event) => onUpdate(JSON.parse(event.data));
  stream.addEventListener("status", (event) => onStatus(JSON.parse(event.data)));
  stream.addEventListener("gap", onGap);
}

function connectAnew() {
  state.setPhase("connecting");
  connect();
}

function startWaiting(delay = 0) {
  isSilent = true;
  heard = caughtUp = performance.now() + delay;
}

function hear() {
  isSilent = false;
  heard = performance.now();
  failures = silentAttempts = 0;
}

function onStatus(status) {
  hear();
  const isOtherKind = status.simulated !== state.simulated;
  const continues = state.takeStatus(status);
  if (isOtherKind || !continues) readPage();
  if (!continues) connect(); // for all that this server has
}

function onUpdate(update) {
  hear();
  if (!state.takeUpdate(update)) connect();
}

function onGap() {
  hear();
  state.takeGap();
}

function onError() {
  startWaiting(BROWSER_WAITS);
  const hasGivenUp = stream.readyState === EventSource.CLOSED;
  // A proxy that holds the stream back may also cut it, which changes nothing.
  if (state.phase !== "held-back" || hasGivenUp) state.setPhase("reconnecting");
  // After an answer such as 503 the browser gives up; then the page tries again.
  if (hasGivenUp) {
    const longest = Math.min(LONGEST_PAUSE, 2000 * 2 ** failures++);
    retry = setTimeout(connect, longest * (0.5 + Math.random() / 2));
  }
}

// A server with other prices may have another source and interval, which are in its page.
async function readPage() {
  try {
    const answer = await fetch(".", { cache: "reload" });
    if (!answer.ok) return;
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    state.takePage(page.body.dataset);
  } catch {
    // It is gone again. The next stream says where its prices come from.
  }
}

// ---- Once a second

// A connection can die without notice (sleep, another network), and scripts do not see keep-alive
// comments. So a stream that is silent for longer than an update or a status takes is opened anew.
function check() {
  if (!stream || stream.readyState === EventSource.CLOSED) return;
  const isTooLong = performance.now() - heard > patience();
  if (isTooLong && isSilent) silentAttempts++;
  if (isTooLong && state.phase === "open") state.setPhase("reconnecting");
  if (hasSlept() || isTooLong) connect();
  if (state.hasAll() && state.phase === "open") caughtUp = performance.now();
  const isSlow = state.phase === "open" && performance.now() - caughtUp > 1000;
  if (isSlow || silentAttempts >= HELD_BACK_AFTER) quote();
}

function patience() {
  if (isSilent) return Math.min(LONGEST_PAUSE, SILENT * 2 ** silentAttempts);
  return state.state() === "stale" ? 60_000 : state.hole + 5000;
}

// While a device sleeps, performance.now() may stand still. The clock also jumps when it is set:
// then the connection is opened anew for nothing, which changes nothing on the page.
function hasSlept() {
  const before = sleepClock;
  sleepClock = Date.now() - performance.now();
  return Math.abs(sleepClock - before) > 10_000;
}

// Asks for the latest price. An answer while the stream is silent means that the stream is held back.
async function quote() {
  if (performance.now() < nextQuote) return;
  nextQuote = performance.now() + Math.max(2000, state.interval);
  let phase = "reconnecting";
  try {
    const answer = await fetch("price", { cache: "no-store", signal: AbortSignal.timeout(5000) });
    if (answer.ok) {
      const update = await answer.json();
      const time = Date.parse(answer.headers.get("Date")) || update.timestamp;
      state.takeQuote(update, answer.headers.has("X-Price-Source"), time);
      phase = "held-back";
    }
  } catch {
    // No answer to this one either.
  }
  if (stream && silentAttempts >= HELD_BACK_AFTER) state.setPhase(phase);
}

// ---- Among other tabs

function onVisibility() {
  if (document.hidden) return;
  if (!stream || stream.readyState === EventSource.CLOSED) connectAnew();
  else check();
}

function pauseIfHidden() {
  if (!document.hidden) return;
  clearTimeout(retry);
  stream?.close();
  stream = null;
  state.setPhase("paused");
}

// Each paused tab waits for another time, and the first one to connect keeps the others paused.
function resumeIfPaused() {
  if (stream) return;
  clearTimeout(retry);
  retry = setTimeout(connectAnew, 1000 * Math.random());
}

function leave() {
  if (!stream) return;
  stream.close();
  tabs.postMessage("closed");
}
