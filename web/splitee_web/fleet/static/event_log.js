// SPDX-License-Identifier: Apache-2.0
// What has happened since the page's server started, the newest first.

import { html, memo, useState } from "./html.js";
import { Named } from "./tables.js";
import { clock } from "./words.js";

const FIRST = 20; // events that are shown at first

export function EventLog({ log, now, devices, open }) {
  const [isAll, showAll] = useState(false);
  if (!log.length) return html`<p class="card empty">Nothing has happened since this page's server started.</p>`;
  return html`<div class="card">
    <ol class="events">${log.slice(0, isAll ? log.length : FIRST).map((one) => html`
      <${Entry} one=${one} time=${clock(one.time, now)} isKnown=${devices.has(one.device)} open=${open} />`)}</ol>
    ${log.length > FIRST && html`<button type="button" aria-expanded=${String(isAll)} onClick=${() => showAll(!isAll)}>
      ${isAll ? "Show fewer" : `Show all ${log.length} events`}</button>`}
  </div>`;
}

const Entry = memo(({ one, time, isKnown, open }) => html`<li>
  <time>${time}</time>
  <span>${one.device && (isKnown
    ? html`<button type="button" class="link" onClick=${() => open(one.device)}><${Named} name=${one.device} /></button>`
    : html`<${Named} name=${one.device} />`)} <bdi>${one.text}</bdi></span>
</li>`);
