// The connection to the server: the stream and, while the stream is slow or held back, /price.
// Reports everything to `state.js` and renders nothing.
//
// Over HTTP/1.1 a browser opens at most six connections to a host, shared by all tabs. So only the
// tabs that are shown stream, or else the one that was hidden last. The tabs share a BroadcastChannel:
// a tab that connects or is hidden announces its rank, and a hidden tab with a higher rank pauses.

import * as state from "./state.js";

const SILENT_AFTER = 5000; // without a status, with which every stream begins
const HELD_BACK_AFTER = 2; // silent attempts
const LONGEST_WAIT = 30_000;
const LONGEST_RETRY = 5000; // the longest `retry` of the server: how long a browser waits to reconnect

const tabs = new BroadcastChannel("btc-ticker");
let hiddenAt = distinctNow();
let stream = null; // null while paused
let retry;
let failures = 0; // in a row
let silentAttempts = 0; // in a row
let isSilent; // no event has arrived on this connection yet
let heard; // when the last event arrived, or when the browser connects
let caughtUp; // when the page last had every update
let nextQuote = 0;
let sleepClock = Date.now() - performance.now();

export function start() {
  tabs.onmessage = onMessage;
  addEventListener("pagehide", leave);
  addEventListener("pageshow", (event) => event.persisted && comeBack());
  addEventListener("online", () => stream && state.phase !== "open" && connect());
  document.addEventListener("visibilitychange", onVisibility);
  setInterval(check, 1000);
  connect();
}

function connect() {
  clearTimeout(retry);
  stream?.close();
  announce();
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
  if (!continues) connect(); // from the beginning
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
  startWaiting(LONGEST_RETRY);
  const hasGivenUp = stream.readyState === EventSource.CLOSED;
  // A proxy that holds the stream back may also cut it: the page still says "held-back".
  if (state.phase !== "held-back" || hasGivenUp) state.setPhase("reconnecting");
  // After a response such as 503 the browser does not reconnect on its own.
  if (hasGivenUp) {
    const longest = Math.min(LONGEST_WAIT, 2000 * 2 ** failures++);
    retry = setTimeout(connect, longest * (0.5 + Math.random() / 2));
  }
}

// Reads the source and the interval of a server that took the place of another.
async function readPage() {
  try {
    const answer = await fetch(".", { cache: "reload" });
    if (!answer.ok) return;
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    state.takePage(page.body.dataset);
  } catch {
    // The server is unreachable again; the next status decides anew.
  }
}

// ---- Once a second

// A connection can die without notice (sleep, another network), and scripts do not see keep-alive
// comments. So a stream without an event for longer than `patience` is replaced.
function check() {
  if (!stream || stream.readyState === EventSource.CLOSED) return;
  const isDead = performance.now() - heard > patience();
  if (isDead && isSilent) silentAttempts++;
  if (isDead && state.phase === "open") state.setPhase("reconnecting");
  if (hasSlept() || isDead) connect();
  if (state.hasAll() && state.phase === "open") caughtUp = performance.now();
  const isSlow = state.phase === "open" && performance.now() - caughtUp > 1000;
  if (isSlow || silentAttempts >= HELD_BACK_AFTER) quote();
}

function patience() {
  if (isSilent) return Math.min(LONGEST_WAIT, SILENT_AFTER * 2 ** silentAttempts);
  return state.state() === "stale" ? 60_000 : state.hole + 5000;
}

// While a device sleeps, performance.now() may stop, and the device's clock does not. They also
// diverge when the clock is set: then the page reconnects needlessly, which the user does not see.
function hasSlept() {
  const before = sleepClock;
  sleepClock = Date.now() - performance.now();
  return Math.abs(sleepClock - before) > 10_000;
}

// Fetches the latest price. If that works while streams are silent, they are held back by a proxy.
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
    // The server does not answer this request either.
  }
  if (stream && silentAttempts >= HELD_BACK_AFTER) state.setPhase(phase);
}

// ---- Among other tabs

const rank = () => (document.hidden ? -hiddenAt : -Infinity);
const announce = () => tabs.postMessage(rank());

// Returns the time, with a random fraction so that two tabs never have the same rank.
function distinctNow() {
  return Date.now() + Math.random();
}

function onVisibility() {
  if (document.hidden) {
    hiddenAt = distinctNow();
    // The tab that is shown instead may have announced itself before this one was hidden.
    if (stream) announce();
  } else if (!stream || stream.readyState === EventSource.CLOSED) {
    connectAnew();
  } else {
    check();
  }
}

function onMessage({ data }) {
  if (data === "closed") resumeIfPaused();
  else compareWith(data);
}

// A tab may have paused for another one that has been hidden since and has a higher rank now. So a
// paused tab resumes when a higher rank is announced; a tab with a lower rank answers if it streams.
function compareWith(other) {
  if (rank() < other) {
    if (stream) announce();
    else resumeIfPaused();
  } else if (document.hidden) {
    pause();
  }
}

function pause() {
  clearTimeout(retry);
  stream?.close();
  stream = null;
  state.setPhase("paused");
}

// Each paused tab waits for a random time: the first one to connect pauses most of the others.
function resumeIfPaused() {
  if (stream) return;
  clearTimeout(retry);
  retry = setTimeout(connectAnew, 1000 * Math.random());
}

// A closing page keeps running briefly. It must not answer, or other tabs would pause for it.
function leave() {
  tabs.onmessage = null;
  if (!stream) return;
  stream.close();
  tabs.postMessage("closed");
}

// Called when the browser restores the page from its back/forward cache.
function comeBack() {
  tabs.onmessage = onMessage;
  connectAnew();
}
