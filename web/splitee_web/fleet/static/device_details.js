// SPDX-License-Identifier: Apache-2.0
// Everything that is known of one device, in a dialog over the page.

import { activity, concerns, memoryShare } from "./attention.js";
import { ConfusionMatrix } from "./confusion.js";
import { CutStrip } from "./cut_strip.js";
import { DeviceCurves } from "./curves.js";
import { State, payload } from "./device_row.js";
import { Bar } from "./glance.js";
import { html, useEffect, useRef } from "./html.js";
import { Table } from "./tables.js";
import { PurposeBars } from "./time_and_traffic.js";
import { shareOf, stateInWords, updatesOf } from "./updates.js";
import {
  ago, bitRate, clock, count, degrees, duration, fixed, images, memory, milliseconds, percent, size, span,
} from "./words.js";

export function DeviceDetails({ id, device, fleet, now, close }) {
  const dialog = useRef(null);
  useEffect(() => {
    const shown = dialog.current;
    shown.showModal();
    return () => shown.close(); // returns the focus to where it was
  }, []);
  const onClick = (event) => event.target === dialog.current && close();
  const onCancel = (event) => {
    event.preventDefault();
    close();
  };
  return html`<dialog ref=${dialog} class="details" aria-labelledby="device" onClick=${onClick} onCancel=${onCancel}>
    <div class="sheet">
      <header>
        <h2 id="device"><bdi>${id}</bdi></h2>
        <button type="button" onClick=${close}>Back<span class="unseen"> to the fleet</span></button>
      </header>
      ${device ? html`<${Known} device=${device} fleet=${fleet} now=${now} />` : html`<p>No such device is known in this fleet.</p>`}
    </div>
  </dialog>`;
}

function Known({ device, fleet, now }) {
  const one = { device, concerns: concerns(device, fleet, now), activity: activity(device, fleet) };
  return html`
    <p class="headline"><${State} one=${one} /><span class="quiet">heard ${ago(device.seen, now)}</span></p>
    <${Facts} facts=${training(one, fleet)} />
    ${device.history?.length > 0 && html`<h3>Accuracy over the rounds</h3>
      <${DeviceCurves} history=${device.history} alone=${device.alone_accuracy} />`}
    ${device.serving && html`<h3>Predictions</h3>
      <${Serving} serving=${device.serving} state=${device.predicted_state} now=${now} />`}
    ${updatesOf(device).length > 0 && html`<h3>Updates</h3><${Facts} facts=${updateFacts(device)} />`}
    ${device.model && html`<h3>Model</h3><${Facts} facts=${modelFacts(device, now)} />`}
    ${device.confusion && html`<h3>Confusion between classes</h3>
      <${ConfusionMatrix} confusion=${device.confusion} run=${fleet.run} of="the device" />`}
    <h3>Machine</h3><${Facts} facts=${machine(device)} />
    ${device.capability?.cuts?.length > 0 && html`<${Costs} capability=${device.capability}
      cut=${device.cut} stages=${fleet.network_stages} />`}
    ${device.traffic && html`<h3>Bytes since its process began</h3><${PurposeBars} traffic=${device.traffic} />`}`;
}

const Facts = ({ facts }) => html`<dl class="known">${facts.filter(([, value]) => value !== null && value !== undefined && value !== "")
  .map(([name, value]) => html`<div key=${name}><dt>${name}</dt><dd>${value}</dd></div>`)}</dl>`;

function training({ device, activity }, fleet) {
  const weakest = device.weakest_class;
  return [
    ["Doing", activity + (device.round ? `, round ${device.round}` : "")],
    ["Step", device.steps ? `${device.step} of ${device.steps} batches` : null],
    ["Loss", fixed(device.loss, 3)],
    ["Exit accuracy", percent(device.exit_accuracy)],
    ["Trunk accuracy", percent(device.trunk_accuracy)],
    ["Adaptive accuracy", percent(device.adaptive_accuracy)],
    ["Alone, before it joined", device.alone_accuracy ? percent(device.alone_accuracy) : null],
    ["Held-out images", device.held_out_samples ? count(device.held_out_samples) : null],
    ["Training images", device.train_samples ? count(device.train_samples) : null],
    ["Weakest class", weakest ? html`<bdi>${weakest.name}</bdi>, ${percent(weakest.recall)} found of ${images(weakest.images)}` : null],
    ["Cut", html`<${CutStrip} cut=${device.cut} next=${device.next_cut} stages=${fleet.network_stages} stage=${device.stage} />`],
  ];
}

function machine(device) {
  const can = device.capability;
  const share = memoryShare(device);
  const limit = share === undefined ? "" : ` of ${memory(device.memory_limit)}, ${percent(share, 0)}`;
  return [
    ["Machine", can ? html`<bdi>${can.machine}</bdi>, ${can.cores} cores` : null],
    ["Temperature", device.temperature ? degrees(device.temperature) : null],
    ["Memory", device.memory ? memory(device.memory) + limit : null],
    ["Link", device.upload ? `slow, ${bitRate(device.upload)}` : can?.upload ? bitRate(can.upload) : null],
    ["Round trip", can?.round_trip ? milliseconds(1000 * can.round_trip) : null],
    ["Sent", size(device.bytes)],
    ["Received", device.traffic?.down ? size(payload(device.traffic.down)) : null],
    ["Version", device.version ? html`<bdi>${device.version}</bdi>` : null],
    ["Cut chosen because", can?.reason ? html`<bdi>${can.reason}</bdi>` : null],
  ];
}

function modelFacts({ model, released }, now) {
  const { serves } = model;
  const round = model.round ? `, round ${model.round}` : "";
  const origin = released?.images ? `, chosen on ${images(released.images)}` : ", the run's";
  const expected = released?.expected_accuracy ?? null;
  return [
    ["Last release", html`${model.state}${round}${model.run && html` of run <bdi>${model.run}</bdi>`}`],
    ["Because", model.reason ? html`<bdi>${model.reason}</bdi>` : null],
    ["In service now", serves ? html`round ${serves.round} of run <bdi>${serves.run}</bdi>, since ${clock(serves.since, now)}` : "none"],
    ["Release", html`<code title=${model.release}>${model.release.slice(0, 12)}</code>`],
    ["Threshold", released ? released.threshold.toFixed(3) + origin : null],
    ["Expected", expected === null ? null : `${percent(expected)} right, ${percent(released.expected_offload)} offloaded`],
  ];
}

const KINDS = { model: "Model", software: "Software" };

/** For each kind of release: what is in service, and the state of the latest one. */
function updateFacts(device) {
  return updatesOf(device).flatMap((one) => {
    const share = shareOf(one);
    const wave = one.rollout && html`, wave ${one.wave} of rollout <bdi>${one.rollout}</bdi>`;
    return [
      [`Latest ${one.kind}`, html`<bdi>${one.latest}</bdi>: ${stateInWords(one)}${wave}${share !== null && html`<${Bar} share=${share} />`}`],
      [`${KINDS[one.kind]} in service`, one.installed ? html`<bdi>${one.installed}</bdi>` : "not known"],
      [`${KINDS[one.kind]}: because`, one.reason ? html`<bdi>${one.reason}</bdi>` : null],
    ];
  });
}

const SOURCES = { exit: "exit", trunk: "trunk", "local-fallback": "exit, because the trunk did not respond" };

function Serving({ serving, state, now }) {
  const facts = [
    ["State", state ? html`<bdi>${state.label}</bdi> for ${span(now - state.since)}, ${percent(state.confidence)} on average` : null],
    ["Predictions", `${fixed(serving.per_minute ?? 0, 1)} a minute`],
    ["Latency, median", serving.latency ? milliseconds(serving.latency) : null],
    ["Offloaded to the trunk", percent(serving.offloaded_share)],
    ["Trunk did not respond", percent(serving.fallback_share)],
    ["Dropped, as newer ones came", serving.dropped ? images(serving.dropped) : null],
  ];
  const last = (serving.last ?? []).map((one) => [
    html`<bdi>${one.label}</bdi>`, percent(one.probability), SOURCES[one.source] ?? one.source, ago(one.time, now),
  ]);
  return html`<${Facts} facts=${facts} />
    ${last.length > 0 && html`<${Table} name="Last predictions" caption="Last predictions"
      head=${["Label", "Probability", "By", "When"]} rows=${last} />`}`;
}

/** What each cut would cost, as the device's profiler has measured it. */
function Costs({ capability, cut, stages }) {
  const rows = capability.cuts.map((one) => [
    html`${one.cut} <bdi>${stages?.[one.cut - 1]?.name ?? ""}</bdi>${one.cut === cut ? " (now)" : ""}`,
    duration(one.seconds), size(one.bytes), memory(one.memory), one.fits ? "yes" : "no",
  ]);
  return html`<details>
    <summary>What each cut costs</summary>
    <${Table} name="What each cut costs" rows=${rows}
      head=${["Cut after stage", "Time a batch", "Bytes a batch", "Memory", "Fits"]} />
  </details>`;
}
