// The page: follows the server's stream, keeps the updates that it brings, and shows them.
// Events only change the few variables of "What is known"; `render` turns those into the
// page, at most once a frame, however many events a frame brings.

const find = (id) => document.getElementById(id);

const KEEP_FOR = 24 * 3_600_000; // a tab that stays open must not grow for ever:
const KEEP_AT_MOST = 20_000; // a day of updates at the usual interval fits

// ---- What is known

const points = []; // { timestamp, price, missed, broken }: broken means that updates before it are missing
let madeUp = document.body.dataset.madeUp === "true";
let interval; // how often an update can be expected
let hole; // longer than this without an update, and some are missing
let phase = "connecting"; // or "open", or "reconnecting"
let stale = null; // what the server says of a source that fails: { since, reason }
let missed = false; // the server no longer has what came after our last update
let skew = 0; // how far this device's clock is ahead of the server's
let span = Infinity; // how much of the past the chart shows
let cursor = null; // the time that the reader points at

const last = () => points[points.length - 1];
const now = () => Math.max(Date.now() - skew, last()?.timestamp ?? 0);

function expectEvery(ms) {
  interval = Number(ms) || 5000;
  hole = 3 * interval;
  points.forEach(judge);
}

function judge(point, i) {
  point.broken = i > 0 && (point.missed || point.timestamp - points[i - 1].timestamp > hole);
}
expectEvery(document.body.dataset.intervalMs);

// For a look from the console, and for tests. Copies: nobody changes the page through it.
window.ticker = Object.freeze({
  get points() { return structuredClone(points); },
  get state() { return state(); },
  get axis() { return structuredClone(scale?.axis); },
});

// ---- The stream

let stream;
let opened = 0;
let heard = 0; // when the stream last said anything
let failures = 0;
let retry;

function connect() {
  clearTimeout(retry);
  stream?.close();
  heard = Date.now();
  // A browser that reconnects by itself sends the last id too, and that wins over this `since`.
  stream = new EventSource(`stream?since=${last()?.timestamp ?? 0}`);
  stream.onopen = onOpen;
  stream.onerror = onError;
  stream.onmessage = (event) => onUpdate(JSON.parse(event.data));
  stream.addEventListener("status", (event) => onStatus(JSON.parse(event.data)));
  stream.addEventListener("gap", onGap);
}

function onOpen() {
  opened = heard = Date.now();
  failures = 0;
  phase = "open";
  stale = null; // were it still so, the server would say it again
  schedule();
}

function onUpdate({ timestamp, price }) {
  heard = Date.now();
  if (timestamp <= last()?.timestamp) return; // held already
  // What comes this long after the connection is no backlog but new: its time is the server's now.
  if (heard - opened > 1000) skew = heard - timestamp;
  points.push({ timestamp, price, missed });
  judge(last(), points.length - 1);
  missed = false;
  forget();
  schedule();
}

function forget() {
  let gone = Math.max(0, points.length - KEEP_AT_MOST);
  while (points[gone].timestamp < last().timestamp - KEEP_FOR) gone++;
  points.splice(0, gone);
}

function onGap() {
  heard = Date.now();
  missed = true;
}

function onStatus(status) {
  heard = Date.now();
  if (status.made_up !== madeUp) return beginAnew(status);
  stale = status.stale ? status : null;
  schedule();
}

// Another server answers at this address: made-up prices and real ones never share a chart.
function beginAnew(status) {
  madeUp = status.made_up;
  document.body.dataset.madeUp = madeUp;
  const hadPoints = points.length > 0;
  points.length = 0;
  missed = false;
  cursor = null;
  zoom(zooms.at(-1));
  readPage();
  if (hadPoints) connect(); // for what is before our last update
  else onStatus(status); // this stream brings all there is
}

// The name of the source and its interval may be others too. The page of that server has them.
async function readPage() {
  try {
    const answer = await fetch(".", { cache: "reload" });
    if (!answer.ok) return;
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    const { source, intervalMs } = page.body.dataset;
    setText("source", source);
    expectEvery(intervalMs);
    schedule();
  } catch {
    // Gone again. The next stream tells where it comes from.
  }
}

function onError() {
  heard = Date.now();
  phase = "reconnecting";
  // After an answer such as 503 the browser gives up for good; then it is for the page to try again.
  if (stream.readyState === EventSource.CLOSED) {
    const longest = Math.min(30_000, 2000 * 2 ** failures++);
    retry = setTimeout(connect, longest * (0.5 + Math.random() / 2));
  }
  schedule();
}

// A connection can die without a word (sleep, another network), and scripts do not see the
// heartbeats. So after a silence that an update or a status should have ended: connect anew.
function checkSilence() {
  const patience = stale ? 60_000 : hole + 10_000;
  const silence = Math.abs(Date.now() - heard); // also when the clock was set back
  if (stream.readyState === EventSource.CLOSED || silence < patience) return;
  if (phase === "open") phase = "reconnecting";
  connect();
}

// ---- Words

const WORDS = {
  connecting: "Connecting",
  waiting: "No price yet",
  live: "Live",
  stale: "No new prices",
  reconnecting: "Reconnecting",
};

function state() {
  if (phase !== "open") return phase;
  if (stale) return "stale";
  if (!points.length) return "waiting";
  // The server says when it is stale; the second's grace is for its word to arrive first.
  return now() - last().timestamp > hole + 1000 ? "stale" : "live";
}

// What the state means for the price that is shown.
function sentence(current) {
  // The server may know when the last price was and keep it no longer.
  const newest = timeOf(last()?.timestamp ?? stale?.since);
  const reason = stale?.reason ? `: ${stale.reason}` : "";
  if (current === "live") return `Updated ${newest}, ${duration(now() - last().timestamp)} ago`;
  if (current === "stale") return (newest ? `No new price since ${newest}` : "No price yet") + reason;
  if (current === "waiting") return "Waiting for the first price";
  if (current === "connecting") return "No price yet";
  const trouble = navigator.onLine ? "No answer from the server" : "This device is offline";
  return newest ? `${trouble}; last price at ${newest}` : trouble;
}

// Numbers and times are written as the reader's browser is set.
const formatter = (parts) => new Intl.DateTimeFormat(undefined, parts);
const clock = formatter({ hour: "numeric", minute: "2-digit", second: "2-digit" });
const shortClock = formatter({ hour: "numeric", minute: "2-digit" });
const day = formatter({ day: "numeric", month: "short" });

function timeOf(timestamp) {
  if (!timestamp) return "";
  const date = day.format(timestamp);
  const time = (date === day.format(now()) ? "" : `${date}, `) + clock.format(timestamp);
  return time.replaceAll(" ", "\u00a0"); // in one piece
}

function duration(ms) {
  const seconds = Math.max(0, Math.floor(ms / 1000));
  if (seconds < 60) return `${seconds} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${seconds % 60} s`;
  return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
}

const number = (options) => new Intl.NumberFormat(undefined, options);
const count = number();
const dollars = number({ style: "currency", currency: "USD", currencyDisplay: "narrowSymbol" });
// Two digits after the point, or as many more as it takes to show two that are not 0.
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
function amount(value, digits = 2) {
  withDigits[digits] ??= number({ minimumFractionDigits: digits, maximumFractionDigits: digits });
  return withDigits[digits].format(value);
}

const minus = (text) => text.replace("-", "−"); // as wide as a plus

// ---- From what is known to the page

let scheduled = false;

function schedule() {
  // A hidden tab gets no frames, but its title is still read.
  if (document.hidden) return renderState();
  if (!scheduled) requestAnimationFrame(render);
  scheduled = true;
}

function render() {
  scheduled = false;
  renderState();
  renderZooms();
  if (points.length) renderPoints();
  else renderNoPrice();
  announce(state());
}

function renderPoints() {
  find("empty").hidden = true;
  const view = visible();
  renderPrice();
  renderFigures(view);
  drawChart(view);
}

// A zoom that would show all there is, is not offered beside "All".
function renderZooms() {
  const past = points.length ? now() - points[0].timestamp : 0;
  for (const button of zooms) {
    button.hidden = button !== zooms.at(-1) && spanOf(button) >= past;
  }
}

function setText(id, text) {
  const element = find(id);
  if (element.textContent !== text) element.textContent = text;
}

function renderState() {
  const current = state();
  find("state").dataset.state = current;
  setText("state-word", WORDS[current]);
  setText("state-detail", madeUp ? "made-up prices" : "");
  setText("updated", sentence(current));
  const price = points.length ? `${dollars.format(last().price)} ` : "";
  const warning = current === "live" ? "" : ` (${WORDS[current].toLowerCase()})`;
  document.title = `${madeUp ? "Made up: " : ""}${price}BTC/USD${warning}`;
}

// The whole dollars are large; the sign, on either side of them, and the cents are small.
function renderPrice() {
  const parts = dollars.formatToParts(last().price);
  const isWhole = ({ type }) => type === "integer" || type === "group";
  const [start, end] = [parts.findIndex(isWhole), parts.findLastIndex(isWhole) + 1];
  const text = (some) => some.map(({ value }) => value).join("");
  setText("price-before", text(parts.slice(0, start)));
  setText("price-whole", text(parts.slice(start, end)));
  setText("price-after", text(parts.slice(end)));
}

// After `beginAnew`, until the first price comes.
function renderNoPrice() {
  find("empty").hidden = false;
  find("reading").hidden = true;
  pen.clearRect(0, 0, canvas.width, canvas.height);
  for (const id of ["price-before", "price-after", "change-amount", "change-since"]) setText(id, "");
  for (const id of ["price-whole", "high", "low"]) setText(id, "–");
  setText("count", count.format(0));
  find("change").dataset.direction = "none";
  find("holes").hidden = true;
  chart.setAttribute("aria-valuetext", "No price yet");
}

function renderFigures({ shown, low, high }) {
  renderChange(shown[0]);
  setText("high", shown.length ? amount(high) : "–");
  setText("low", shown.length ? amount(low) : "–");
  setText("count", count.format(shown.length));
  find("holes").hidden = !shown.some((point) => point.broken) && now() - last().timestamp <= hole;
}

function renderChange(oldest) {
  const exact = oldest ? last().price - oldest.price : 0;
  const change = Math.round(exact * 100) / 100; // what rounds to nothing is neither up nor down
  const direction = change > 0 ? "up" : change < 0 ? "down" : "none";
  const sign = { up: "▲ +", down: "▼ −", none: "±" }[direction];
  const share = oldest ? minus(percent.format(change / oldest.price)) : "";
  find("change").dataset.direction = direction;
  setText("change-amount", oldest ? `${sign}${amount(Math.abs(change))} (${share})` : "");
  setText("change-since", oldest ? `since ${timeOf(oldest.timestamp)}` : "");
}

// For screen readers: a change of state once it has lasted, else the price once a minute.
let held = { words: "", since: 0 };
let announced = { words: "", at: 0 };

function announce(current) {
  const time = Date.now();
  const words = [madeUp ? "Made-up prices" : "", WORDS[current]].filter(Boolean).join(", ");
  if (held.words !== words) held = { words, since: time };
  const news = announced.words !== words && time - held.since > 2000;
  const due = announced.words === words && current === "live" && time - announced.at > 60_000;
  if (!news && !due) return;
  announced = { words, at: time };
  const price = points.length ? dollars.format(last().price) : "";
  const more = current === "live" ? price : sentence(current);
  setText("announcement", `${words}, ${more}`);
}

// ---- The chart

const chart = find("chart");
const canvas = chart.querySelector("canvas");
const pen = canvas.getContext("2d");
const TAG_FROM_LABEL = 1.4; // how far the latest price keeps from the labels beside it, in em
let scale; // of the last drawing; the pointer needs it too

// The part of the past that is shown, and the updates in it.
function visible() {
  const to = now();
  // No wider than what there is, except that the first few updates need some room.
  const from = Math.min(Math.max(to - span, points[0].timestamp), to - 4 * interval);
  const first = indexAt(from);
  const shown = points.slice(first);
  const prices = (shown.length ? shown : [last()]).map((point) => point.price);
  return { from, to, first, shown, low: Math.min(...prices), high: Math.max(...prices) };
}

// The index of the first update at `timestamp` or after it.
function indexAt(timestamp) {
  let [low, high] = [0, points.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (points[middle].timestamp < timestamp) low = middle + 1;
    else high = middle;
  }
  return low;
}

function drawChart(view) {
  const { width, height } = fitCanvas();
  const style = getComputedStyle(canvas);
  const em = parseFloat(style.fontSize);
  const colour = (name) => style.getPropertyValue(`--${name}`);
  pen.font = `${style.fontSize} ${style.fontFamily}`;

  const [top, bottom] = [em * 0.9, height - em * 2];
  const ticks = priceTicks(view, (bottom - top) / em);
  const labels = ticks.values.map((value) => amount(value, ticks.digits));
  const latest = amount(last().price);
  const gutter = em * 1.6 + Math.max(...[...labels, latest].map((label) => pen.measureText(label).width));
  const box = { left: 1, right: width - gutter, top, bottom };
  const perMs = (box.right - box.left) / (view.to - view.from);
  const perDollar = (box.bottom - box.top) / (ticks.high - ticks.low);
  const x = (timestamp) => box.left + (timestamp - view.from) * perMs;
  const y = (price) => box.bottom - (price - ticks.low) * perDollar;
  scale = { ...view, ...box, em, colour, perMs, x, y, axis: { em, prices: [], times: [], tag: null } };

  drawPriceAxis(ticks.values, labels);
  drawTimeAxis();
  pen.save();
  pen.beginPath();
  pen.rect(box.left, 0, box.right - box.left, box.bottom);
  pen.clip();
  drawHoles();
  drawLine();
  pen.restore();
  drawLatest(latest);
  drawCursor();
}

// As many pixels as the screen has, measured in those of the page.
function fitCanvas() {
  const size = canvas.getBoundingClientRect();
  const density = window.devicePixelRatio;
  canvas.width = Math.round(size.width * density); // which clears it too
  canvas.height = Math.round(size.height * density);
  pen.scale(density, density);
  return size;
}

// The roundest prices of which there are three or more. `ems` is the height.
function priceTicks(view, ems) {
  // At least a little room: a change of some cents must not look like a crash.
  const room = Math.max((view.high - view.low) * 0.08, view.high * 0.0001);
  const [low, high] = [view.low - room, view.high + room];
  const power = 10 ** Math.floor(Math.log10(high - low));
  const ticks = (step) => {
    const first = Math.ceil(low / step);
    const values = Array.from({ length: Math.floor(high / step) - first + 1 }, (_, i) => (first + i) * step);
    const digits = Math.min(12, Math.max(0, Math.ceil(-Math.log10(step))));
    const apart = (step / (high - low)) * ems;
    return { low, high, values, digits, apart };
  };
  // Between two labels there must be room for the latest price.
  const choices = [5, 2, 1, 0.5, 0.2, 0.1, 0.05].map((factor) => ticks(factor * power));
  const roomy = choices.filter(({ apart }) => apart > 2 * TAG_FROM_LABEL);
  return roomy.find(({ values }) => values.length >= 3) ?? roomy.at(-1) ?? choices[0];
}

function drawPriceAxis(values, labels) {
  const { left, right, em, colour, y, axis } = scale;
  pen.textBaseline = "middle";
  values.forEach((value, i) => {
    pen.fillStyle = colour("rule");
    pen.fillRect(left, Math.round(y(value)), right - left, 1);
    pen.fillStyle = colour("muted");
    pen.fillText(labels[i], right + em * 0.8, y(value));
    axis.prices.push({ label: labels[i], y: y(value) });
  });
}

const TIME_STEPS = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200];

function drawTimeAxis() {
  const { from, to, left, right, bottom, em, colour, perMs, x, axis } = scale;
  const local = new Date(to).getTimezoneOffset() * 60_000; // steps count from local midnight
  const clockFor = (step) => (step < 60 ? clock : shortClock);
  // The widest hour, as some languages write it, and a gap.
  const width = (step) => pen.measureText(clockFor(step).format(local + 82_799_000)).width + em * 1.5;
  const seconds = TIME_STEPS.find((step) => step * 1000 * perMs > width(step)) ?? 86_400;
  const step = 1000 * seconds;
  const format = (time) => ((time - local) % 86_400_000 === 0 ? day : clockFor(seconds)).format(time);
  pen.textAlign = "center";
  pen.textBaseline = "alphabetic";
  pen.fillStyle = colour("edge");
  pen.fillRect(left, bottom, right - left, 1);
  for (let time = Math.ceil((from - local) / step) * step + local; time <= to; time += step) {
    const label = format(time);
    const half = pen.measureText(label).width / 2;
    const middle = Math.max(x(time), half); // the first may stand aside, for it must not be cut off
    if (middle - x(time) > em) continue;
    pen.fillStyle = colour("edge");
    pen.fillRect(Math.round(x(time)), bottom, 1, em * 0.4);
    pen.fillStyle = colour("muted");
    pen.fillText(label, middle, bottom + em * 1.6);
    axis.times.push({ label, from: middle - half, to: middle + half });
  }
  pen.textAlign = "left";
}

// Where updates are missing there is no line but a hatched strip.
function drawHoles() {
  const { first, to, em, x } = scale;
  for (let i = Math.max(1, first); i < points.length; i++) {
    if (points[i].broken) drawHole(x(points[i - 1].timestamp), x(points[i].timestamp));
  }
  if (to - last().timestamp > hole) drawHole(x(last().timestamp), x(to) + em);
}

function drawHole(start, end) {
  const { left, right, top, bottom, em, colour } = scale;
  const widen = Math.max(0, em * 0.5 - (end - start)) / 2; // however short, it is to be seen
  const [a, b] = [Math.max(start - widen, left - em), Math.min(end + widen, right + em)];
  const height = bottom - top;
  pen.save();
  pen.strokeStyle = colour("edge");
  pen.setLineDash([4, 4]);
  pen.strokeRect(a, top, b - a, height + em);
  pen.beginPath();
  pen.rect(a, top, b - a, height);
  pen.clip();
  pen.setLineDash([]);
  pen.globalAlpha = 0.5;
  pen.beginPath();
  for (let x = a - height; x < b; x += em * 0.6) {
    pen.moveTo(x, bottom);
    pen.lineTo(x + height, top);
  }
  pen.stroke();
  pen.restore();
}

function drawLine() {
  const { first, bottom, colour, x, y } = scale;
  pen.lineWidth = 2;
  pen.lineJoin = "round";
  pen.strokeStyle = colour("line");
  let start = Math.max(0, first - 1); // one more, for the line to enter from the edge
  for (let end = start + 1; end <= points.length; end++) {
    if (end < points.length && !points[end].broken) continue;
    const run = thin(points.slice(start, end), x);
    start = end;
    if (run.length === 1) drawDot(run[0], 2); // between two holes there is no line to see
    const line = new Path2D();
    for (const point of run) line.lineTo(x(point.timestamp), y(point.price));
    const area = new Path2D(line);
    area.lineTo(x(run.at(-1).timestamp), bottom);
    area.lineTo(x(run[0].timestamp), bottom);
    pen.fillStyle = colour("fill");
    pen.fill(area);
    pen.stroke(line);
  }
}

// Of the updates that share a column of pixels, the first, the lowest, the highest and the
// last draw the same picture as all of them.
function thin(run, x) {
  const kept = [];
  for (let start = 0, end = 0; start < run.length; start = end) {
    const column = Math.floor(x(run[start].timestamp));
    let [low, high] = [start, start];
    for (; end < run.length && Math.floor(x(run[end].timestamp)) === column; end++) {
      if (run[end].price < run[low].price) low = end;
      if (run[end].price > run[high].price) high = end;
    }
    const telling = new Set([start, Math.min(low, high), Math.max(low, high), end - 1]);
    for (const index of telling) kept.push(run[index]);
  }
  return kept;
}

function drawDot(point, radius) {
  const { colour, x, y } = scale;
  pen.fillStyle = colour("line");
  pen.beginPath();
  pen.arc(x(point.timestamp), y(point.price), radius, 0, 2 * Math.PI);
  pen.fill();
}

// The nearest place to the level of the latest price where its tag hides no label.
function placeTag(level) {
  const { top, bottom, em, axis } = scale;
  const apart = em * TAG_FROM_LABEL;
  const besides = axis.prices.flatMap((label) => [label.y - apart, label.y + apart]);
  const isFree = (at) => axis.prices.every((label) => Math.abs(label.y - at) >= apart - 0.01);
  const isInside = (at) => at >= top && at <= bottom;
  const places = [level, ...besides].filter((at) => isFree(at) && isInside(at));
  places.sort((a, b) => Math.abs(a - level) - Math.abs(b - level));
  return places[0] ?? level;
}

function drawLatest(label) {
  const { shown, right, em, colour, y, axis } = scale;
  const level = y(last().price);
  const at = axis.tag = placeTag(level);
  const edge = right + em * 0.4;
  if (shown.length) drawDot(last(), 4);
  pen.fillStyle = colour("line");
  pen.beginPath();
  pen.roundRect(edge, at - em * 0.75, pen.measureText(label).width + em * 0.8, em * 1.5, em * 0.3);
  // It points at its level, from wherever it is.
  pen.moveTo(right, level);
  pen.lineTo(edge + em * 0.1, at - em * 0.4);
  pen.lineTo(edge + em * 0.1, at + em * 0.4);
  pen.fill();
  pen.fillStyle = colour("paper");
  pen.textBaseline = "middle";
  pen.fillText(label, right + em * 0.8, at);
}

// ---- Reading the chart: pointer, finger and arrow keys move the same cursor

// The update that is nearest to the cursor, of those that are shown.
function cursorIndex({ first, shown }) {
  if (cursor === null || !shown.length) return null;
  const after = Math.min(Math.max(indexAt(cursor), first), points.length - 1);
  const before = Math.max(after - 1, first);
  return cursor - points[before].timestamp < points[after].timestamp - cursor ? before : after;
}

function drawCursor() {
  const { left, right, top, bottom, em, colour, x, y } = scale;
  const index = cursorIndex(scale);
  const reading = find("reading");
  reading.hidden = index === null;
  if (index === null) return;
  const at = x(points[index].timestamp);
  pen.fillStyle = colour("ink");
  pen.fillRect(Math.round(at), top, 1, bottom - top);
  drawDot(points[index], 5);
  setText("reading-price", dollars.format(points[index].price));
  setText("reading-time", readingTime(points[index]));
  const { offsetWidth: width, offsetHeight: height } = reading;
  const across = Math.max(left, Math.min(at - width / 2, right + em - width));
  // At the top, unless it would cover what it reads.
  const down = y(points[index].price) > top + height + em ? top : bottom - height - em * 0.5;
  reading.style.transform = `translate(${Math.round(across)}px, ${Math.round(down)}px)`;
}

function readingTime({ timestamp, broken }) {
  return timeOf(timestamp) + (broken ? ", no data for a while before it" : "");
}

function moveCursor(time) {
  cursor = time;
  schedule();
}

function onPointer(event) {
  if (!points.length || !scale) return;
  const offset = event.clientX - canvas.getBoundingClientRect().left;
  moveCursor(scale.from + (offset - scale.left) / scale.perMs);
}

function onKey({ key, altKey, ctrlKey, metaKey }) {
  if (key === "Escape") moveCursor(null);
  if (!points.length || altKey || ctrlKey || metaKey) return true;
  const view = visible();
  const newest = points.length - 1;
  const at = cursorIndex(view) ?? newest;
  const leap = Math.ceil(view.shown.length / 10);
  const target = {
    ArrowLeft: at - 1, ArrowDown: at - 1, PageDown: at - leap, Home: view.first,
    ArrowRight: at + 1, ArrowUp: at + 1, PageUp: at + leap, End: newest,
  }[key];
  if (target === undefined) return true;
  const index = Math.min(Math.max(target, view.first), newest);
  moveCursor(points[index].timestamp);
  speak(view, points[index]);
  return false;
}

// Only when the reader moves: a slider that changes by itself would talk without end.
function speak({ from, to }, point) {
  const position = ((point.timestamp - from) / (to - from)) * 100;
  chart.setAttribute("aria-valuenow", Math.round(Math.min(100, Math.max(0, position))));
  chart.setAttribute("aria-valuetext", `${dollars.format(point.price)}, ${readingTime(point)}`);
}

chart.onpointermove = chart.onpointerdown = onPointer;
// A finger leaves with every tap, and what it tapped is still to be read; `blur` ends that.
chart.onpointerleave = (event) => event.pointerType === "mouse" && moveCursor(null);
chart.onblur = () => moveCursor(null);
chart.onfocus = () => points.length && speak(visible(), last());
chart.onkeydown = onKey;

// ---- Start

const zooms = [...document.querySelectorAll(".zoom button")]; // the last one shows all
const spanOf = (button) => Number(button.dataset.minutes) * 60_000;

function zoom(chosen) {
  span = spanOf(chosen);
  for (const button of zooms) button.setAttribute("aria-pressed", String(button === chosen));
  schedule();
}

for (const button of zooms) button.onclick = () => zoom(button);
new ResizeObserver(schedule).observe(chart);
for (const look of ["(prefers-color-scheme: dark)", "(forced-colors: active)"]) {
  matchMedia(look).onchange = schedule;
}

addEventListener("offline", schedule);
addEventListener("online", () => phase !== "open" && connect());
addEventListener("pageshow", (event) => event.persisted && connect());
document.addEventListener("visibilitychange", () => {
  if (!document.hidden && stream.readyState === EventSource.CLOSED) connect();
  checkSilence();
  schedule();
});
setInterval(() => {
  checkSilence();
  schedule(); // ages count
}, 1000);

setText("zone", `local (${Intl.DateTimeFormat().resolvedOptions().timeZone})`);
connect();
