// SPDX-License-Identifier: Apache-2.0
// A cut drawn on the network's stages: those on the device are filled, those on the server are outlined.

import { html } from "./html.js";

const [WIDTH, HEIGHT, GAP] = [126, 10, 2]; // pixels
const MOST = 40; // stages that are drawn one by one

export function CutStrip({ cut, next, stages, stage }) {
  if (!cut) return html`<span class="quiet">no cut yet</span>`;
  const total = stages?.length ?? 0;
  const name = stage ?? stages?.[cut - 1]?.name;
  return html`
    ${total > 0 && html`<${Strip} cut=${Math.min(cut, total)} total=${total} />`}
    <small><span class="unseen">cut after stage </span>${cut}${total > 0 && ` of ${total}`}
      ${name && html` <bdi>${name}</bdi>`}${next && `, next ${next}`}</small>`;
}

function Strip({ cut, total }) {
  const unit = (WIDTH + GAP) / total;
  const one = total <= MOST ? 1 : 0; // a box per stage; else one box for each side
  return html`<svg class="strip" viewBox="0 0 ${WIDTH} ${HEIGHT}" preserveAspectRatio="none" aria-hidden="true">
    <path class="on" d=${boxes(0, cut, unit, one || cut)} /><path class="off" d=${boxes(cut, total, unit, one || total - cut)} />
  </svg>`;
}

/** Boxes of `step` stages each, inset by half a line's width. */
function boxes(first, end, unit, step) {
  let path = "";
  for (let stage = first; stage < end; stage += step) {
    const [left, width] = [(stage * unit + 0.5).toFixed(1), (step * unit - GAP - 1).toFixed(1)];
    path += `M${left} 0.5h${width}v${HEIGHT - 1}h-${width}z`;
  }
  return path;
}
