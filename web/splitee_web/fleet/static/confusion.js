// SPDX-License-Identifier: Apache-2.0
// Confusion between classes: of the fleet, or of one device.

import { html, memo, useEffect, useRef, useState } from "./html.js";
import { Named } from "./tables.js";
import { className, count, images, percent } from "./words.js";

const READABLE = 20; // classes up to which each count can be read
const WORST = 8; // mistakes that are listed
const FAINTEST = 0.06; // strength of the colour of the smallest count

export const FleetClasses = memo(({ fleet, devices }) => {
  const [chosen, choose] = useState("");
  const known = [...devices.values()].filter((device) => device.confusion);
  const device = devices.get(chosen);
  const confusion = device ? device.confusion : fleet.confusion ?? known[0]?.confusion;
  return html`
    ${known.length > 0 && html`<label class="choice">Of ${" "}
      <select value=${chosen} onChange=${(event) => choose(event.target.value)}>
        <option value="">${fleet.confusion ? "all devices" : known[0].id}</option>
        ${known.map(({ id }) => html`<option key=${id} value=${id}>${id}</option>`)}
      </select>
    </label>`}
    ${confusion
      ? html`<${ConfusionMatrix} confusion=${confusion} run=${fleet.run} of=${device ? "the device" : "the fleet"} />`
      : html`<p>It was not evaluated.</p>`}`;
});

/** Rows are true classes, columns are predicted ones. */
export const ConfusionMatrix = memo(({ confusion, run, of }) => {
  const names = confusion.classes.map((index) => className(run, index));
  const { counts } = confusion;
  const totals = counts.map((row) => row.reduce((sum, value) => sum + value, 0));
  const all = totals.reduce((sum, value) => sum + value, 0);
  const right = counts.reduce((sum, row, index) => sum + row[index], 0);
  return html`<div class="card classes">
    <p>${percent(all ? right / all : null)} of ${images(all)} are predicted correctly.</p>
    <div class="matrix-and-list">
      <${names.length <= READABLE ? Counts : Drawing} names=${names} counts=${counts} totals=${totals} of=${of} />
      <${Mistakes} names=${names} counts=${counts} totals=${totals} />
    </div>
  </div>`;
});

const shade = (value, total) => (value ? FAINTEST + (1 - FAINTEST) * (value / total) : 0);

function Counts({ names, counts, totals }) {
  const cell = (value, row, column) => html`<td class=${column === row ? "right" : "wrong"}
    style=${{ "--share": shade(value, totals[row]) }}><span class=${value ? "" : "nothing"}>${count(value)}</span></td>`;
  return html`<div class="scroll" tabindex="0" role="region" aria-label="Confusion matrix"><table class="matrix">
    <caption>Images, by true class (rows) and predicted class (columns)</caption>
    <thead><tr><td></td>${names.map((name) => html`<th scope="col"><${Named} name=${name} /></th>`)}</tr></thead>
    <tbody>${counts.map((row, index) => html`<tr>
      <th scope="row" class="name"><${Named} name=${names[index]} /></th>
      ${row.map((value, column) => cell(value, index, column))}
    </tr>`)}</tbody>
  </table></div>`;
}

function Drawing({ names, counts, totals, of }) {
  const canvas = useRef(null);
  useEffect(() => {
    const size = names.length;
    const drawing = canvas.current.getContext("2d");
    const style = getComputedStyle(document.documentElement);
    drawing.clearRect(0, 0, size, size);
    counts.forEach((row, index) => row.forEach((value, column) => {
      drawing.globalAlpha = shade(value, totals[index]);
      drawing.fillStyle = style.getPropertyValue(column === index ? "--series-0" : "--series-1").trim();
      drawing.fillRect(column, index, 1, 1);
    }));
  }, [counts]);
  return html`<div><canvas ref=${canvas} class="matrix" width=${names.length} height=${names.length} role="img"
    aria-label=${`Confusion matrix of ${of}, ${names.length} classes; its mistakes are listed beside it`}></canvas>
    <p class="quiet">True classes from above, predicted ones from the left; ${names.length} classes.</p></div>`;
}

function Mistakes({ names, counts, totals }) {
  const found = counts.flatMap((row, index) => row.map((value, column) => ({ value, index, column })))
    .filter((one) => one.value && one.index !== one.column).sort((one, other) => other.value - one.value).slice(0, WORST);
  if (!found.length) return html`<p>No image is taken for another class.</p>`;
  return html`<div>
    <h3>Most frequent mistakes</h3>
    <ol class="mistakes">${found.map(({ value, index, column }) => html`<li>
      <span><${Named} name=${names[index]} /> taken for <${Named} name=${names[column]} /></span>
      ${" "}<b>${count(value)} of ${images(totals[index])}</b>
    </li>`)}</ol>
  </div>`;
}
