// SPDX-License-Identifier: Apache-2.0
// Everything that is known of one device, over the page.

import { activity, concerns, memoryShare } from "./attention.js";
import { ConfusionMatrix } from "./confusion.js";
import { CutStrip } from "./cut_strip.js";
import { DeviceCurves } from "./curves.js";
import { State, payload } from "./device_row.js";
import { html, useEffect, useRef } from "./html.js";
import { OUTCOMES } from "./releases.js";
import { PurposeBars } from "./time_and_traffic.js";
import { ago, bitRate, clock, count, degrees, duration, fixed, images, memory, milliseconds, percent, size } from "./words.js";

export function DeviceDetails({ id, device, fleet, now, close }) {
  const dialog = useRef(null);
  useEffect(() => {
    const shown = dialog.current;
    shown.showModal();
    return () => shown.close(); // gives the focus back to where it was
  }, []);
  const onClick = (event) => event.target === dialog.current && close();
  const onCancel = (event) => {
    event.preventDefault();
    close();
  };
  return html`<dialog ref=${dialog} class="details" aria-labelledby="device" onClick=${onClick} onCancel=${onCancel}>
    <div class="sheet">
      <header><h2 id="device"><bdi>${id}</bdi></h2><button type="button" onClick=${close}>Back<span class="unseen"> to the fleet</span></button></header>
      ${device ? html`<${Known} device=${device} fleet=${fleet} now=${now} />` : html`<p>No such device has spoken in this fleet.</p>`}
    </div>
  </dialog>`;
}

function Known({ device, fleet, now }) {
  const one = { device, concerns: concerns(device, fleet, now), activity: activity(device, fleet) };
  return html`
    <p class="headline"><${State} one=${one} /><span class="quiet">heard ${ago(device.seen, now)}</span></p>
    <${Facts} facts=${training(one, fleet)} />
    ${device.history?.length > 0 && html`<h3>Accuracy over the rounds</h3><${DeviceCurves} history=${device.history} alone=${device.alone_accuracy} />`}
    ${device.serving && html`<h3>Predictions</h3><${Serving} serving=${device.serving} now=${now} />`}
    ${device.model && html`<h3>Model</h3><${Facts} facts=${modelFacts(device, now)} />`}
    ${device.confusion && html`<h3>Which classes it takes for which</h3><${ConfusionMatrix} confusion=${device.confusion} run=${fleet.run} of="the device" />`}
    <h3>Machine</h3><${Facts} facts=${machine(device)} />
    ${device.capability?.cuts?.length > 0 && html`<${Costs} capability=${device.capability} cut=${device.cut} stages=${fleet.network_stages} />`}
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
  return [
    ["Machine", can ? html`<bdi>${can.machine}</bdi>, ${can.cores} cores` : null],
    ["Temperature", device.temperature ? degrees(device.temperature) : null],
    ["Memory", device.memory ? `${memory(device.memory)}${share === undefined ? "" : ` of ${memory(device.memory_limit)}, ${percent(share, 0)}`}` : null],
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
  return [
    ["Last release", html`${OUTCOMES[model.state]}${model.round ? `, round ${model.round}` : ""}${model.run ? html` of run <bdi>${model.run}</bdi>` : ""}`],
    ["Because", model.reason ? html`<bdi>${model.reason}</bdi>` : null],
    ["In service now", serves ? html`round ${serves.round} of run <bdi>${serves.run}</bdi>, since ${clock(serves.since, now)}` : "none"],
    ["Release", html`<code title=${model.release}>${model.release.slice(0, 12)}</code>`],
    ["Threshold", released ? `${released.threshold.toFixed(3)}${released.images ? `, chosen on ${images(released.images)}` : ", the run's"}` : null],
    ["Expected", released?.expected_accuracy ? `${percent(released.expected_accuracy)} right, ${percent(released.expected_offload)} offloaded` : null],
  ];
}

const SOURCES = { exit: "exit", trunk: "trunk", "local-fallback": "exit, for the trunk did not respond" };

function Serving({ serving, now }) {
  const facts = [
    ["Predictions", `${fixed(serving.per_minute ?? 0, 1)} a minute`],
    ["Latency, median", serving.latency ? milliseconds(serving.latency) : null],
    ["Offloaded to the trunk", percent(serving.offloaded_share)],
    ["Trunk did not respond", percent(serving.fallback_share)],
  ];
  const last = serving.last ?? [];
  return html`<${Facts} facts=${facts} />
    ${last.length > 0 && html`<div class="scroll" tabindex="0" role="region" aria-label="Last predictions"><table><caption>Last predictions</caption>
      <thead><tr><th scope="col" class="name">Label</th><th scope="col">Probability</th><th scope="col">By</th><th scope="col">When</th></tr></thead>
      <tbody>${last.map((one) => html`<tr><th scope="row" class="name"><bdi>${one.label}</bdi></th><td>${percent(one.probability)}</td><td>${SOURCES[one.source] ?? one.source}</td><td>${ago(one.time, now)}</td></tr>`)}</tbody>
    </table></div>`}`;
}

/** What each cut would cost, as the device's profiler has measured it. */
function Costs({ capability, cut, stages }) {
  return html`<details><summary>What each cut costs</summary><div class="scroll" tabindex="0" role="region" aria-label="What each cut costs"><table>
    <thead><tr><th scope="col" class="name">Cut after stage</th><th scope="col">Time a batch</th><th scope="col">Bytes a batch</th><th scope="col">Memory</th><th scope="col">Fits</th></tr></thead>
    <tbody>${capability.cuts.map((one) => html`<tr><th scope="row" class="name">${one.cut} <bdi>${stages?.[one.cut - 1]?.name ?? ""}</bdi>${one.cut === cut ? " (now)" : ""}</th>
      <td>${one.seconds < 1 ? milliseconds(1000 * one.seconds) : duration(one.seconds)}</td><td>${size(one.bytes)}</td><td>${memory(one.memory)}</td><td>${one.fits ? "yes" : "no"}</td></tr>`)}</tbody>
  </table></div></details>`;
}
