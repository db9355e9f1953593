// SPDX-License-Identifier: Apache-2.0
// A cut drawn on the network's stages: those on the device are filled, those on the server are outlined.

import { html } from "./html.js";

const MOST = 40; // stages that are drawn one by one

export function CutStrip({ cut, next, stages, stage }) {
  if (!cut) return html`<span class="quiet">no cut yet</span>`;
  const total = stages?.length ?? 0;
  const name = stage ?? stages?.[cut - 1]?.name;
  const then = next ? `, next ${next}` : "";
  const text = `${cut}${total ? ` of ${total}` : ""}`;
  return html`
    ${total > 0 && html`<span class="strip" aria-hidden="true">${drawn(cut, total).map(([kind, width]) => html`<i class=${kind} style=${{ flexGrow: width }}></i>`)}</span>`}
    <small><span class="unseen">cut after stage </span>${text}${name && html` <bdi>${name}</bdi>`}${then}</small>`;
}

/** Kind and width of each box. */
function drawn(cut, total) {
  if (total > MOST) return [["on", cut], ["off", total - cut]];
  return Array.from({ length: total }, (_, index) => [index < cut ? "on" : "off", 1]);
}
