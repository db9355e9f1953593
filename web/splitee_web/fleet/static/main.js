// SPDX-License-Identifier: Apache-2.0
// Starts the page, with a limited number of drawings per second.

import { App } from "./app.js";
import { html, render } from "./html.js";
import { Store } from "./store.js";

const PAUSE = 250; // milliseconds between two drawings
const TICK = 1000; // milliseconds between two updates of times such as "3 s ago"

const root = document.getElementById("page");
let isDue = false;
let drawn = -Infinity;

function draw() {
  isDue = false;
  drawn = performance.now();
  render(html`<${App} store=${store} now=${store.now} />`, root);
}

function changed() {
  if (isDue) return;
  isDue = true;
  setTimeout(() => requestAnimationFrame(draw), Math.max(drawn + PAUSE - performance.now(), 0));
}

const store = new Store(changed);
root.replaceChildren();
draw();
store.open();
setInterval(changed, TICK);
