// SPDX-License-Identifier: Apache-2.0
// Starts the page: at most so many drawings a second, whatever comes in.

import { App } from "./app.js";
import { html, render } from "./html.js";
import { Store } from "./store.js";

const PAUSE = 250; // milliseconds between two drawings
const SCROLLING = 1000; // likewise, while somebody scrolls: rows that come into sight are drawn at once all the same
const STILL = 200; // milliseconds after which nobody scrolls any more
const TICK = 1000; // milliseconds after which what was "3 s ago" is 4 s ago

const root = document.getElementById("page");
let isDue = false;
let drawn = -Infinity;
let scrolled = -Infinity;

function draw() {
  isDue = false;
  drawn = performance.now();
  render(html`<${App} store=${store} now=${store.now} />`, root);
}

function changed() {
  if (isDue) return;
  isDue = true;
  const now = performance.now();
  const pause = now - scrolled < STILL ? SCROLLING : PAUSE;
  setTimeout(() => requestAnimationFrame(draw), Math.max(drawn + pause - now, 0));
}

const store = new Store(changed);
root.replaceChildren();
draw();
store.open();
setInterval(changed, TICK);
addEventListener("scroll", () => { scrolled = performance.now(); }, { capture: true, passive: true });
