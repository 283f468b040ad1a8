// The entry point. `stream.js` receives events, `state.js` holds the data, `words.js` and
// `drawing.js` render it. Every change of the state calls `schedule`, so the page is rendered at
// most once a frame, however many events arrive in between.

import * as drawing from "./drawing.js";
import * as state from "./state.js";
import * as stream from "./stream.js";
import * as words from "./words.js";

let isScheduled = false;

function schedule() {
  if (document.hidden) {
    // A hidden tab has no frames, but its title is visible. While a backlog is loading, the title
    // would change with every update.
    if (state.state() !== "catching-up") words.renderState();
    return;
  }
  if (!isScheduled) requestAnimationFrame(render);
  isScheduled = true;
}

function render() {
  isScheduled = false;
  const view = state.points.length ? state.visible() : null;
  words.render(view);
  drawing.draw(view);
}

// For the console and for tests. Returns copies, so a caller cannot change the page.
window.ticker = Object.freeze({
  get points() { return structuredClone(state.points); },
  get state() { return state.state(); },
  get axis() { return structuredClone(drawing.axis()); },
});

state.onChange(schedule);
state.takePage(document.body.dataset);
words.setText("zone", `local (${Intl.DateTimeFormat().resolvedOptions().timeZone})`);
drawing.start();
stream.start();
new ResizeObserver(schedule).observe(document.querySelector("#chart"));
for (const query of ["(prefers-color-scheme: dark)", "(forced-colors: active)"]) {
  matchMedia(query).onchange = schedule;
}
document.addEventListener("visibilitychange", schedule);
setInterval(schedule, 1000); // the age of the price grows
