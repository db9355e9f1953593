// SPDX-License-Identifier: Apache-2.0
// The runs from which the current one's weights come, and the current one, side by side.

import { html } from "./html.js";
import { Named, Table } from "./tables.js";
import { clock, count, percent, points, UNKNOWN } from "./words.js";

const HEAD = [
  "Run", "Adaptive", "Change", "Exit", "Trunk", "Training images", "Held-out images", "Devices", "Rounds", "Ended",
];
const CAPTION =
  "Each run began with the weights of the one before; accuracies are of the fleet, after a run's last round";

/** @param fleet with its `seasons`, the earliest first. @param devices of the current run. */
export function Seasons({ fleet, devices, now }) {
  const all = [...fleet.seasons, present(fleet, devices)];
  const classes = [...new Set(all.flatMap((season) => (season.class_recalls ?? []).map((one) => one.name)))];
  const rows = all.map((season, index) => cells(season, all[index - 1], now));
  const recalls = classes.map((name) => [html`<${Named} name=${name} />`, ...all.map((season) => recall(season, name))]);
  const runs = all.map((season) => html`<${Named} name=${season.run} />`);
  return html`<div class="card">
    <${Table} name="Seasons" caption=${CAPTION} head=${HEAD} rows=${rows} />
    ${classes.length > 0 && html`<details>
      <summary>Class by class</summary>
      <${Table} name="Share of each class that was found, by run" head=${["Class", ...runs]} rows=${recalls} />
    </details>`}
  </div>`;
}

function present({ run, metrics, phase, committed }, devices) {
  return {
    ...metrics?.fleet,
    run: run?.run ?? "",
    rounds: committed,
    devices: devices.length,
    train_images: devices.reduce((total, device) => total + (device.train_samples ?? 0), 0),
    held_out_images: metrics?.fleet?.images,
    isUnderWay: phase?.phase !== "finished",
    ended: metrics?.time,
  };
}

function cells(season, before, now) {
  const ended = season.ended ? clock(season.ended, now) : UNKNOWN;
  return [
    html`<${Named} name=${season.run} />`,
    html`<b>${percent(season.adaptive_accuracy)}</b>`,
    change(before, season),
    percent(season.exit_accuracy),
    percent(season.trunk_accuracy),
    known(season.train_images),
    known(season.held_out_images),
    known(season.devices),
    season.rounds,
    season.isUnderWay ? "under way" : ended,
  ];
}

const known = (number) => (number ? count(number) : UNKNOWN);

const recall = (season, name) => percent(season.class_recalls?.find((one) => one.name === name)?.recall);

function change(before, season) {
  const [one, other] = [before?.adaptive_accuracy, season.adaptive_accuracy].map((value) => value ?? null);
  return one === null || other === null ? "" : points(other - one);
}
