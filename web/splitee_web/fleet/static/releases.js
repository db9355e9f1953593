// SPDX-License-Identifier: Apache-2.0
// Models that were released: which are offered, in service, refused or rolled back, and on how many devices.

import { Mark } from "./glance.js";
import { html } from "./html.js";
import { clock, several } from "./words.js";

export const OUTCOMES = { offered: "offered", "in service": "in service", refused: "refused", "rolled back": "rolled back" };
const LEVELS = { offered: "quiet", "in service": "good", refused: "bad", "rolled back": "warn" };
const MOST = 20; // devices that are listed

export function Releases({ releases, run, all, now, open }) {
  const troubled = all.filter(({ device }) => ["refused", "rolled back"].includes(device.model?.state)).slice(0, MOST);
  return html`<div class="card">
    <div class="scroll" tabindex="0" role="region" aria-label="Released models"><table>
      <thead><tr><th scope="col" class="name">State</th><th scope="col">Devices</th><th scope="col">Round</th><th scope="col" class="name">Run</th></tr></thead>
      <tbody>${releases.map((one) => html`<tr><th scope="row" class="name"><span class="state ${LEVELS[one.state]}"><${Mark} level=${LEVELS[one.state]} />${OUTCOMES[one.state]}</span></th>
        <td>${several(one.devices, "device")}</td><td>${one.round || "not known"}</td><td class="name"><bdi class="cut" title=${one.run}>${one.run || "not known"}</bdi>${run && one.run === run.run ? " (this one)" : ""}</td></tr>`)}</tbody>
    </table></div>
    ${troubled.length > 0 && html`<ul class="reasons">${troubled.map(({ device }) => html`<li key=${device.id}><button type="button" class="link" onClick=${() => open(device.id)}><bdi class="cut">${device.id}</bdi></button>
      ${" "}${OUTCOMES[device.model.state]}${device.model.since ? ` at ${clock(device.model.since, now)}` : ""}: <bdi>${device.model.reason || "no reason given"}</bdi></li>`)}</ul>`}
  </div>`;
}
