// SPDX-License-Identifier: Apache-2.0
// Releases: rollouts with their waves, updates on their way, failures with reasons, and models by their state.

import { Bar, Mark } from "./glance.js";
import { html } from "./html.js";
import { Rollouts } from "./rollouts.js";
import { Named, Table } from "./tables.js";
import { failuresOf, shareOf, stateInWords, underWay } from "./updates.js";
import { clock, several } from "./words.js";

const LEVELS = {
  offered: "quiet", downloading: "quiet", trying: "quiet", "in service": "good", failed: "bad", "rolled back": "warn",
};
const MOST = 20; // devices that are listed

export function Releases({ fleet, all, now, open }) {
  const { rollouts, releases, run } = fleet;
  const updating = each(all, underWay);
  const failed = each(all, failuresOf);
  return html`
    ${rollouts?.length > 0 && html`<${Rollouts} rollouts=${rollouts} now=${now} />`}
    ${updating.length > 0 && html`<${Listed} title="On their way" some=${updating} now=${now} open=${open} />`}
    ${failed.length > 0 && html`<${Listed} title="Not in service" some=${failed} now=${now} open=${open} />`}
    ${releases?.length > 0 && html`<div class="card">
      <${Table} name="Released models" head=${["State", "Devices", "Round", "Run"]} rows=${releases.map((one) => cells(one, run))} text=${[3]} />
    </div>`}`;
}

const each = (all, of) => all.flatMap(({ device }) => of(device).map((update) => ({ device, update })));

function cells(release, run) {
  const level = LEVELS[release.state];
  return [
    html`<span class="state ${level}"><${Mark} level=${level} />${release.state}</span>`,
    several(release.devices, "device"),
    release.round || "not known",
    html`<${Named} name=${release.run || "not known"} />${run?.run === release.run ? " (this one)" : ""}`,
  ];
}

/** Updates of devices, one per line. */
function Listed({ title, some, now, open }) {
  const rest = some.length - MOST;
  return html`<div class="card">
    <h3>${title}: ${several(some.length, "update")}</h3>
    <ul class="updates">${some.slice(0, MOST).map(({ device, update }) => html`
      <${Line} key=${`${device.id} ${update.kind}`} device=${device} update=${update} now=${now} open=${open} />`)}</ul>
    ${rest > 0 && html`<p class="quiet">and ${several(rest, "more", "more")}: see the devices' filters</p>`}
  </div>`;
}

function Line({ device, update, now, open }) {
  const { kind, latest, state, reason, since } = update;
  const level = LEVELS[state];
  const share = shareOf(update);
  return html`<li>
    <button type="button" class="link" onClick=${() => open(device.id)}><${Named} name=${device.id} /></button>
    <span>${kind} <bdi>${latest}</bdi>: <span class="state ${level}"><${Mark} level=${level} />${stateInWords(update)}</span>
      ${since ? ` at ${clock(since, now)}` : ""}${reason && html`: <bdi>${reason}</bdi>`}${share !== null && html`<${Bar} share=${share} />`}</span>
  </li>`;
}
