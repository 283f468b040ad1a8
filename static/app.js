// The entry point. `stream.js` hears the server, `state.js` keeps what it says, `words.js` and
// `drawing.js` show it. Every change of the state calls `schedule`, so the page is rendered at
// most once a frame, however many events a frame brings.

import * as drawing from "./drawing.js";
import * as state from "./state.js";
import * as stream from "./stream.js";
import * as words from "./words.js";

let isScheduled = false;

function schedule() {
  if (document.hidden) {
    // A hidden tab gets no frames, but its title is still read. A backlog changes it too often.
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

// For a look from the console, and for tests. Copies: nobody changes the page through it.
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
for (const look of ["(prefers-color-scheme: dark)", "(forced-colors: active)"]) {
  matchMedia(look).onchange = schedule;
}
document.addEventListener("visibilitychange", schedule);
setInterval(schedule, 1000); // ages count
