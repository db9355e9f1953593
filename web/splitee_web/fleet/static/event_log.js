// SPDX-License-Identifier: Apache-2.0
// What has happened since the page's server began to look, the newest first.

import { html, memo, useState } from "./html.js";
import { clock } from "./words.js";

const FIRST = 20; // events that are shown at first

export function EventLog({ log, now, devices, open }) {
  const [isAll, showAll] = useState(false);
  if (!log.length) return html`<p class="card empty">Nothing has happened since this page is served.</p>`;
  return html`<div class="card">
    <ol class="events">${log.slice(0, isAll ? log.length : FIRST).map((one) => html`<${Entry} one=${one} time=${clock(one.time, now)} isKnown=${devices.has(one.device)} open=${open} />`)}</ol>
    ${log.length > FIRST && html`<button type="button" aria-expanded=${String(isAll)} onClick=${() => showAll(!isAll)}>${isAll ? "Show fewer" : `Show all ${log.length} events`}</button>`}
  </div>`;
}

const Entry = memo(({ one, time, isKnown, open }) => html`<li>
  <time>${time}</time>
  <span>${one.device && (isKnown
    ? html`<button type="button" class="link" onClick=${() => open(one.device)}><bdi class="cut" title=${one.device}>${one.device}</bdi></button>`
    : html`<bdi class="cut" title=${one.device}>${one.device}</bdi>`)} <bdi>${one.text}</bdi></span>
</li>`);
