// The texts of the page: the state, the price, the figures, the title, and what a screen reader
// announces. Reads `state.js` and writes into the document. `drawing.js` shares its formats.

import * as state from "./state.js";

const WORDS = {
  connecting: "Connecting",
  "catching-up": "Loading",
  waiting: "Waiting",
  live: "Live",
  stale: "No new prices",
  reconnecting: "Reconnecting",
  "held-back": "Not live",
  paused: "Paused",
};

export const find = (id) => document.getElementById(id);

export function setText(id, text) {
  const element = find(id);
  if (element.textContent !== text) element.textContent = text;
}

// Every second part is a value, in a <bdi>: a time in Arabic would reorder the words around it.
export function setParts(id, parts) {
  const element = find(id);
  if (element.textContent === parts.join("")) return;
  const nodes = parts.map((part, i) => (i % 2 ? isolated(part) : part));
  element.replaceChildren(...nodes);
}

function isolated(text) {
  const element = document.createElement("bdi");
  element.textContent = text;
  return element;
}

// ---- Formats: numbers and times in the browser's language

const formatter = (parts) => new Intl.DateTimeFormat(undefined, parts);
export const clock = formatter({ hour: "numeric", minute: "2-digit", second: "2-digit" });
export const shortClock = formatter({ hour: "numeric", minute: "2-digit" });
export const day = formatter({ day: "numeric", month: "short" });

export function timeOf(timestamp) {
  if (!timestamp) return "";
  const date = day.format(timestamp);
  const time = (date === day.format(state.now()) ? "" : `${date}, `) + clock.format(timestamp);
  return time.replaceAll(" ", "\u00a0"); // never wraps
}

function duration(ms) {
  const seconds = Math.max(0, Math.floor(ms / 1000));
  if (seconds < 60) return `${seconds} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${seconds % 60} s`;
  return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
}

const number = (options) => new Intl.NumberFormat(undefined, options);
const count = number();
export const dollars = number({ style: "currency", currency: "USD", currencyDisplay: "narrowSymbol" });
const signed = number({ signDisplay: "exceptZero", minimumFractionDigits: 2, maximumFractionDigits: 2 });
// Two decimals, or as many more as it takes to show two digits that are not 0.
const percent = number({
  style: "percent",
  signDisplay: "exceptZero",
  minimumFractionDigits: 2,
  maximumFractionDigits: 2,
  minimumSignificantDigits: 2,
  maximumSignificantDigits: 2,
  roundingPriority: "morePrecision",
});

const withDigits = [];
export function amount(value, digits = 2) {
  withDigits[digits] ??= number({ minimumFractionDigits: digits, maximumFractionDigits: digits });
  return withDigits[digits].format(value);
}

const minus = (text) => text.replace("-", "−"); // as wide as a plus

// ---- The state

// Explains the state and dates the price that is shown. Every second part is a value.
function sentence(current) {
  const newest = state.newest();
  const reason = state.reason ? `: ${state.reason}` : "";
  if (!newest) {
    if (current === "stale") return [`No price yet${reason}`];
    return [{ reconnecting: trouble(), "catching-up": "Loading prices" }[current] ?? "No price yet"];
  }
  const time = timeOf(newest.timestamp);
  switch (current) {
    case "live": return ["Updated ", time, `, ${duration(state.now() - newest.timestamp)} ago`];
    case "stale": return ["No new price since ", time, reason];
    case "held-back": return ["Blocked by a proxy or virus scanner? Price as of ", time];
    case "reconnecting": return [`${trouble()}; last price at `, time];
    case "catching-up": {
      const rest = newest === state.last() ? "newer ones are loading" : "the chart is loading";
      return ["Price as of ", time, `; ${rest}`];
    }
    default: return ["Last price at ", time]; // connecting, waiting or paused
  }
}

function trouble() {
  return navigator.onLine ? "No answer from the server" : "This device is offline";
}

// The state and the title: all that a hidden tab shows.
export function renderState() {
  const current = state.state();
  document.body.dataset.simulated = state.simulated;
  find("state").dataset.state = current;
  setText("state-word", WORDS[current]);
  setText("state-detail", state.simulated ? "simulated prices" : "");
  setParts("updated", sentence(current));
  setText("source", state.source);
  const price = state.newest() ? `${dollars.format(state.newest().price)} ` : "";
  const warning = current === "live" ? "" : ` (${WORDS[current].toLowerCase()})`;
  document.title = `${state.simulated ? "Simulated: " : ""}${price}BTC/USD${warning}`;
}

// ---- The price and the figures

// `view` is what `visible` returns, or null without any update.
export function render(view) {
  renderState();
  renderPrice();
  renderChange(view?.shown[0]);
  renderFigures(view);
  announce(state.state());
}

// The whole dollars are large; the sign, on either side of them, and the cents are small. A screen
// reader reads the price in one piece, from `price-spoken`.
function renderPrice() {
  const newest = state.newest();
  const parts = newest ? dollars.formatToParts(newest.price) : [{ type: "integer", value: "–" }];
  const isWhole = ({ type }) => type === "integer" || type === "group";
  const [start, end] = [parts.findIndex(isWhole), parts.findLastIndex(isWhole) + 1];
  const text = (some) => some.map(({ value }) => value).join("");
  setText("price-before", text(parts.slice(0, start)));
  setText("price-whole", text(parts.slice(start, end)));
  setText("price-after", text(parts.slice(end)));
  setText("price-spoken", newest ? text(parts) : "No price yet");
}

function renderChange(oldest) {
  const exact = oldest ? state.newest().price - oldest.price : 0;
  const change = Math.round(exact * 100) / 100; // a change that rounds to 0 is neither up nor down
  const direction = change > 0 ? "up" : change < 0 ? "down" : "none";
  const arrow = { up: "▲ ", down: "▼ ", none: "" }[direction];
  const difference = change === 0 ? `±${amount(0)}` : minus(signed.format(change));
  const share = oldest ? minus(percent.format(change / oldest.price)) : "";
  find("change").dataset.direction = direction;
  setParts("change-amount", oldest ? [arrow, difference, " (", share, ")"] : []);
  setParts("change-since", oldest ? ["since ", timeOf(oldest.timestamp)] : []);
}

function renderFigures(view) {
  const hasShown = view?.shown.length > 0;
  setText("high", hasShown ? amount(view.high) : "–");
  setText("low", hasShown ? amount(view.low) : "–");
  setText("count", count.format(hasShown ? view.shown.length : 0));
  const isHatched = view && (view.shown.some((point) => point.broken) || state.isOverdue());
  find("holes").hidden = !isHatched;
  find("empty").hidden = view !== null;
}

// ---- For screen readers: a change of state once it has lasted, else the price once a minute

let held = { words: "", since: 0 };
let announced = { words: "", at: 0 };

function announce(current) {
  const time = performance.now();
  const words = [state.simulated ? "Simulated prices" : "", WORDS[current]].filter(Boolean).join(", ");
  if (held.words !== words) held = { words, since: time };
  const isNews = announced.words !== words && time - held.since > 2000;
  const isDue = announced.words === words && current === "live" && time - announced.at > 60_000;
  if (!isNews && !isDue) return;
  announced = { words, at: time };
  const more = current === "live" ? dollars.format(state.newest().price) : sentence(current).join("");
  setText("announcement", `${words}, ${more}`);
}
