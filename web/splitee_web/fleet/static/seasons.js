// SPDX-License-Identifier: Apache-2.0
// The runs that the present one's weights come from, and the present one, side by side.

import { html } from "./html.js";
import { clock, count, percent, points, UNKNOWN } from "./words.js";

/** @param fleet with its `seasons`, the earliest first. @param devices of the present run. */
export function Seasons({ fleet, devices, now }) {
  const all = [...fleet.seasons, present(fleet, devices)];
  const classes = [...new Set(all.flatMap((season) => (season.class_recalls ?? []).map((one) => one.name)))];
  return html`<div class="card">
    <div class="scroll" tabindex="0" role="region" aria-label="Seasons"><table>
      <caption>Each run began with the weights of the one before; accuracies are of the fleet, after a run's last round</caption>
      <thead><tr><th scope="col" class="name">Run</th><th scope="col">Ended</th><th scope="col">Rounds</th><th scope="col">Devices</th><th scope="col">Training images</th>
        <th scope="col">Held-out images</th><th scope="col">Exit</th><th scope="col">Trunk</th><th scope="col">Adaptive</th><th scope="col">Change</th></tr></thead>
      <tbody>${all.map((season, index) => html`<tr key=${season.run}>
        <th scope="row" class="name"><bdi class="cut" title=${season.run}>${season.run}</bdi></th>
        <td>${season.isPresent ? "under way" : season.ended ? clock(season.ended, now) : UNKNOWN}</td>
        <td>${season.rounds}</td><td>${known(season.devices)}</td><td>${known(season.train_images)}</td><td>${known(season.held_out_images)}</td>
        <td>${percent(season.exit_accuracy)}</td><td>${percent(season.trunk_accuracy)}</td><td><b>${percent(season.adaptive_accuracy)}</b></td>
        <td>${change(all[index - 1], season)}</td></tr>`)}</tbody>
    </table></div>
    ${classes.length > 0 && html`<details><summary>Class by class</summary><div class="scroll" tabindex="0" role="region" aria-label="Classes by season"><table>
      <caption class="unseen">Share of each class that was found, by run</caption>
      <thead><tr><th scope="col" class="name">Class</th>${all.map((season) => html`<th scope="col"><bdi class="cut" title=${season.run}>${season.run}</bdi></th>`)}</tr></thead>
      <tbody>${classes.map((name) => html`<tr key=${name}><th scope="row" class="name"><bdi class="cut" title=${name}>${name}</bdi></th>
        ${all.map((season) => html`<td>${percent(season.class_recalls?.find((one) => one.name === name)?.recall)}</td>`)}</tr>`)}</tbody>
    </table></div></details>`}
  </div>`;
}

function present({ run, metrics, phase, committed }, devices) {
  const found = metrics?.fleet ?? {};
  const sum = devices.reduce((total, device) => total + (device.train_samples ?? 0), 0);
  const isPresent = phase?.phase !== "finished";
  return { ...found, run: run?.run ?? "", rounds: committed, devices: devices.length, train_images: sum, held_out_images: found.images, isPresent, ended: metrics?.time };
}

const known = (number) => (number ? count(number) : UNKNOWN);

function change(before, season) {
  const [one, other] = [before?.adaptive_accuracy, season.adaptive_accuracy].map((value) => value ?? null);
  return one === null || other === null ? "" : points(other - one);
}
