// The chart: a canvas with the price line, the choice of the time shown, and a cursor that follows
// pointer, finger and arrow keys. Reads `state.js`, reports the user's choices to it, and uses the
// formats of `words.js`.

import * as state from "./state.js";
import { amount, clock, day, dollars, find, setParts, setText, shortClock, timeOf } from "./words.js";

const root = document.documentElement;
const chart = find("chart");
const canvas = chart.querySelector("canvas");
const pen = canvas.getContext("2d");
const TAG_FROM_LABEL = 1.4; // distance between the tag of the latest price and a label, in em
const zooms = [...document.querySelectorAll(".zoom button")]; // the last one shows all
let scale = null; // of the last drawing; the pointer handler needs it too

export function start() {
  chart.onpointermove = chart.onpointerdown = onPointer;
  // A finger leaves after every tap, but what it points at stays visible until `blur`.
  chart.onpointerleave = (event) => event.pointerType === "mouse" && state.moveCursor(null);
  chart.onblur = () => state.moveCursor(null);
  chart.onfocus = () => state.points.length && speak(state.visible(), state.last());
  chart.onkeydown = onKey;
  for (const button of zooms) button.onclick = () => state.showSpan(spanOf(button));
  addEventListener("beforeprint", () => print(true));
  addEventListener("afterprint", () => print(false));
}

// The axes of the last drawing, or undefined.
export const axis = () => scale?.axis;

// `view` is what `visible` returns, or null without any update.
export function draw(view) {
  drawZooms();
  if (view) drawChart(view);
  else clear();
}

// Paper is white and differs in width from the screen, and browsers do not redraw a canvas for it.
function print(isPrinting) {
  root.classList.toggle("print", isPrinting);
  draw(state.points.length ? state.visible() : null);
}

// Hides a choice that would show the same as "All".
function drawZooms() {
  const past = state.points.length ? state.now() - state.points[0].timestamp : 0;
  for (const button of zooms) {
    button.hidden = button !== zooms.at(-1) && spanOf(button) >= past;
    button.setAttribute("aria-pressed", String(spanOf(button) === state.span));
  }
}

function spanOf(button) {
  return Number(button.dataset.minutes) * 60_000;
}

function clear() {
  scale = null;
  pen.clearRect(0, 0, canvas.width, canvas.height);
  find("reading").hidden = true;
  chart.setAttribute("aria-valuetext", "No price yet");
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
  const latest = amount(state.last().price);
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
  if (state.hasAll()) drawLatest(latest);
  drawCursor();
}

// Gives the canvas the resolution of the screen or of paper. Returns its size in CSS pixels.
function fitCanvas() {
  const size = canvas.getBoundingClientRect();
  const density = root.classList.contains("print") ? 3 : window.devicePixelRatio;
  canvas.width = Math.round(size.width * density); // clears it, too
  canvas.height = Math.round(size.height * density);
  pen.scale(density, density);
  return size;
}

// Returns the roundest prices of which at least three fit. `ems` is the height in em.
function priceTicks(view, ems) {
  // A minimum range: a change of a few cents must not look like a crash.
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
  // The tag of the latest price has to fit between two labels.
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
  // The width of 22:59:59, the longest label in most languages, and a margin.
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
    const middle = Math.max(x(time), half); // the first one may move right, so that it is not cut off
    if (middle - x(time) > em) continue;
    pen.fillStyle = colour("edge");
    pen.fillRect(Math.round(x(time)), bottom, 1, em * 0.4);
    pen.fillStyle = colour("muted");
    pen.fillText(label, middle, bottom + em * 1.6);
    axis.times.push({ label, from: middle - half, to: middle + half });
  }
  pen.textAlign = "left";
}

// A hatched strip replaces the line in which updates are missing.
function drawHoles() {
  const { first, to, em, x } = scale;
  const { points } = state;
  for (let i = Math.max(1, first); i < points.length; i++) {
    if (points[i].broken) drawHole(x(points[i - 1].timestamp), x(points[i].timestamp));
  }
  if (state.isOverdue()) drawHole(x(points.at(-1).timestamp), x(to) + em);
}

function drawHole(start, end) {
  const { left, right, top, bottom, em, colour } = scale;
  const widen = Math.max(0, em * 0.5 - (end - start)) / 2; // a short one is visible, too
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
  const { points } = state;
  pen.lineWidth = 2;
  pen.lineJoin = "round";
  pen.strokeStyle = colour("line");
  let start = Math.max(0, first - 1); // from the update before: the line begins at the edge
  for (let end = start + 1; end <= points.length; end++) {
    if (end < points.length && !points[end].broken) continue;
    const run = thin(points.slice(start, end), x);
    start = end;
    if (run.length === 1) drawDot(run[0], 2); // between two holes
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

// Returns the first, lowest, highest and last update of each column of pixels, which draw the same
// picture as all updates.
function thin(run, x) {
  const kept = [];
  for (let start = 0, end = 0; start < run.length; start = end) {
    const column = Math.floor(x(run[start].timestamp));
    let [low, high] = [start, start];
    for (; end < run.length && Math.floor(x(run[end].timestamp)) === column; end++) {
      if (run[end].price < run[low].price) low = end;
      if (run[end].price > run[high].price) high = end;
    }
    const indices = new Set([start, Math.min(low, high), Math.max(low, high), end - 1]);
    for (const index of indices) kept.push(run[index]);
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

// Returns the position nearest to the latest price at which its tag covers no label.
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
  const level = y(state.last().price);
  const at = axis.tag = placeTag(level);
  const edge = right + em * 0.4;
  if (shown.length) drawDot(state.last(), 4);
  pen.fillStyle = colour("line");
  pen.beginPath();
  pen.roundRect(edge, at - em * 0.75, pen.measureText(label).width + em * 0.8, em * 1.5, em * 0.3);
  // A wedge points from the tag to the level of the price.
  pen.moveTo(right, level);
  pen.lineTo(edge + em * 0.1, at - em * 0.4);
  pen.lineTo(edge + em * 0.1, at + em * 0.4);
  pen.fill();
  pen.fillStyle = colour("paper");
  pen.textBaseline = "middle";
  pen.fillText(label, right + em * 0.8, at);
}

// ---- The cursor: pointer, finger and arrow keys move the same one

function drawCursor() {
  const { left, right, top, bottom, em, colour, x, y } = scale;
  const index = state.cursorIndex(scale);
  const reading = find("reading");
  reading.hidden = index === null;
  if (index === null) return;
  const point = state.points[index];
  const at = x(point.timestamp);
  pen.fillStyle = colour("ink");
  pen.fillRect(Math.round(at), top, 1, bottom - top);
  drawDot(point, 5);
  setText("reading-price", dollars.format(point.price));
  setParts("reading-time", readingTime(point));
  const { offsetWidth: width, offsetHeight: height } = reading;
  const across = Math.max(left, Math.min(at - width / 2, right + em - width));
  // At the top, unless it would cover the point that it describes.
  const down = y(point.price) > top + height + em ? top : bottom - height - em * 0.5;
  reading.style.transform = `translate(${Math.round(across)}px, ${Math.round(down)}px)`;
}

function readingTime({ timestamp, broken }) {
  return ["", timeOf(timestamp), broken ? ", after a gap in the data" : ""];
}

function onPointer(event) {
  if (!scale) return;
  const offset = event.clientX - canvas.getBoundingClientRect().left;
  state.moveCursor(scale.from + (offset - scale.left) / scale.perMs);
}

// Returns false for a key that the chart handles, so that it does not scroll the page.
function onKey({ key, altKey, ctrlKey, metaKey }) {
  if (key === "Escape") state.moveCursor(null);
  if (!state.points.length || altKey || ctrlKey || metaKey) return true;
  const view = state.visible();
  const newest = state.points.length - 1;
  const at = state.cursorIndex(view) ?? newest;
  const leap = Math.ceil(view.shown.length / 10);
  const target = {
    ArrowLeft: at - 1, ArrowDown: at - 1, PageDown: at - leap, Home: view.first,
    ArrowRight: at + 1, ArrowUp: at + 1, PageUp: at + leap, End: newest,
  }[key];
  if (target === undefined) return true;
  const index = Math.min(Math.max(target, view.first), newest);
  state.moveCursor(state.points[index].timestamp);
  speak(view, state.points[index]);
  return false;
}

// Called only when the user moves the cursor: a screen reader announces each change of a slider.
function speak({ from, to }, point) {
  const position = ((point.timestamp - from) / (to - from)) * 100;
  chart.setAttribute("aria-valuenow", Math.round(Math.min(100, Math.max(0, position))));
  chart.setAttribute("aria-valuetext", `${dollars.format(point.price)}, ${readingTime(point).join("")}`);
}
