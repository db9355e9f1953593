// SPDX-License-Identifier: Apache-2.0
// Models that were released: which are offered, in service, refused or rolled back, and on how many devices.

import { Mark } from "./glance.js";
import { html } from "./html.js";
import { Named, Table } from "./tables.js";
import { clock, several } from "./words.js";

const LEVELS = { offered: "quiet", "in service": "good", refused: "bad", "rolled back": "warn" };
const MOST = 20; // devices that are listed

export function Releases({ releases, run, all, now, open }) {
  const troubled = all.filter(({ device }) => ["refused", "rolled back"].includes(device.model?.state)).slice(0, MOST);
  const rows = releases.map((one) => cells(one, run));
  return html`<div class="card">
    <${Table} name="Released models" head=${["State", "Devices", "Round", "Run"]} rows=${rows} text=${[3]} />
    ${troubled.length > 0 && html`<ul class="reasons">
      ${troubled.map(({ device }) => html`<${Reason} key=${device.id} device=${device} now=${now} open=${open} />`)}
    </ul>`}
  </div>`;
}

function cells(release, run) {
  const level = LEVELS[release.state];
  return [
    html`<span class="state ${level}"><${Mark} level=${level} />${release.state}</span>`,
    several(release.devices, "device"),
    release.round || "not known",
    html`<${Named} name=${release.run || "not known"} />${run?.run === release.run ? " (this one)" : ""}`,
  ];
}

function Reason({ device, now, open }) {
  const { state, since, reason } = device.model;
  return html`<li>
    <button type="button" class="link" onClick=${() => open(device.id)}><${Named} name=${device.id} /></button>
    ${" "}${state}${since ? ` at ${clock(since, now)}` : ""}: <bdi>${reason || "no reason given"}</bdi>
  </li>`;
}
