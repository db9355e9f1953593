// SPDX-License-Identifier: Apache-2.0
// Tables that scroll by themselves on a narrow screen.

import { html } from "./html.js";

/** @param name for screen readers; `caption` is visible to all.
 *  @param head titles of the columns. @param rows cells by row; the first one names the row.
 *  @param text columns, besides the first, that hold text: it is aligned to the left. */
export function Table({ name, caption, head, rows, text = [] }) {
  const side = (column) => (column === 0 || text.includes(column) ? "name" : "");
  return html`<div class="scroll" tabindex="0" role="region" aria-label=${name}>
    <table>
      <caption class=${caption ? "" : "unseen"}>${caption ?? name}</caption>
      <thead><tr>${head.map((title, column) => html`<th scope="col" class=${side(column)}>${title}</th>`)}</tr></thead>
      <tbody>${rows.map(([first, ...cells]) => html`<tr>
        <th scope="row" class="name">${first}</th>
        ${cells.map((cell, column) => html`<td class=${side(column + 1)}>${cell}</td>`)}
      </tr>`)}</tbody>
    </table>
  </div>`;
}

/** A name chosen by a user: shortened if there is no room, complete in its title. */
export const Named = ({ name }) => html`<bdi class="cut" title=${name}>${name}</bdi>`;
