// SPDX-License-Identifier: Apache-2.0
// One device in the list: a row of a table, or a card on a narrow screen.

import { memoryShare } from "./attention.js";
import { CutStrip } from "./cut_strip.js";
import { Bar, Mark } from "./glance.js";
import { html, memo } from "./html.js";
import { shareOf, stateInWords, underWay } from "./updates.js";
import { ago, bitRate, degrees, fixed, memory, percent, size, span, UNKNOWN, wholePercent } from "./words.js";

export const COLUMNS = [
  { key: "name", title: "Device", orders: ["id", "seen"], Cell: Name },
  { key: "place", title: "Cut", orders: ["cut"], Cell: Place },
  { key: "doing", title: "Doing", orders: ["progress"], Cell: Doing },
  { key: "loss", title: "Loss", orders: ["loss"], Cell: ({ device }) => fixed(device.loss, 3) },
  { key: "exit", title: "Exit", orders: ["exit"], Cell: ({ device }) => percent(device.exit_accuracy) },
  { key: "trunk", title: "Trunk", orders: ["trunk"], Cell: ({ device }) => percent(device.trunk_accuracy) },
  { key: "adaptive", title: "Adaptive", orders: ["adaptive"], Cell: ({ device }) => html`<b>${percent(device.adaptive_accuracy)}</b>` },
  { key: "weakest", title: "Weakest", orders: ["weakest"], Cell: Weakest },
  { key: "machine", title: "Temp., memory", orders: ["temperature", "memory"], Cell: Machine },
  { key: "moved", title: "Bytes, link", orders: ["bytes"], Cell: Moved },
  { key: "model", title: "Model", orders: ["model"], Cell: Model },
];

/** Drawn again when `said`, all that is shown of the device as one text, or `second` changes: once per second. */
export const DeviceRow = memo(({ one, device, stages, second, open, top, number }) => {
  const worst = one.concerns[0];
  const cells = { one, device, stages, now: second };
  return html`<div role="row" class="row ${worst ? `is-${level(worst)}` : ""}" data-id=${device.id} aria-rowindex=${number}
      style=${{ transform: `translateY(${top}px)` }} onClick=${(event) => event.target.closest("button") ?? open(device.id)}>
    ${COLUMNS.map(({ key, title, Cell }) => {
      const content = html`<${Cell} ...${cells} open=${open} />`;
      return key === "name"
        ? html`<div key=${key} role="rowheader" class=${key}>${content}</div>`
        : html`<div key=${key} role="cell" class=${key}><span class="label" aria-hidden="true">${title}</span><div>${content}</div></div>`;
    })}
  </div>`;
}, ["one", "device"]);

export const level = (concern) => (["offline", "quarantined"].includes(concern.kind) ? "bad" : "warn");

function Name({ one, device, now, open }) {
  return html`<button type="button" class="cut" title=${device.id} onClick=${() => open(device.id)}><bdi>${device.id}</bdi></button>
    <small class="cut"><${State} one=${one} /></small><small class="cut">heard ${ago(device.seen, now)}</small>`;
}

/** In words, with a mark: what is wrong, or that it is online. */
export function State({ one }) {
  if (one.concerns.length) {
    const text = one.concerns.map((concern) => concern.text).join(", ");
    const worst = level(one.concerns[0]);
    return html`<span class="state ${worst}" title=${text}><${Mark} level=${worst} />${text}</span>`;
  }
  const isThere = one.device.online;
  const tone = isThere ? "good" : "quiet";
  return html`<span class="state ${tone}"><${Mark} level=${tone} />${isThere ? "online" : one.activity}</span>`;
}

function Place({ device, stages }) {
  return html`<${CutStrip} cut=${device.cut} next=${device.next_cut} stages=${stages} stage=${device.stage} />`;
}

function Doing({ one, device, now }) {
  const state = device.predicted_state;
  const isUnderWay = device.online && device.steps > 0 && ["training", "evaluating"].includes(device.doing);
  const round = device.round ? `, round ${device.round}` : "";
  return html`<span class="cut">${one.activity}${round}${isUnderWay && html`<${Bar} share=${device.step / device.steps} />`}</span>
    ${isUnderWay && html`<small class="cut">${device.step} of ${device.steps} batches</small>`}
    ${state && html`<small class="cut" title=${state.label}><bdi>${state.label}</bdi> for ${span(now - state.since)}</small>`}`;
}

function Weakest({ device }) {
  const found = device.weakest_class;
  if (!found) return UNKNOWN;
  return html`<span class="cut" title=${found.name}><bdi>${found.name}</bdi></span><small>${percent(found.recall)} found</small>`;
}

function Machine({ device }) {
  const share = memoryShare(device);
  const full = share !== undefined && `, ${percent(share, 0)}`;
  return html`${degrees(device.temperature)}<small class="cut">${memory(device.memory)}${full}</small>`;
}

function Moved({ device }) {
  const speed = device.upload ?? null;
  const usual = device.capability?.upload;
  const link = speed !== null ? html`<span class="state warn">slow, ${bitRate(speed)}</span>` : usual ? bitRate(usual) : "";
  const down = device.traffic?.down ? payload(device.traffic.down) : null;
  const received = down !== null && html`${" "}↓ <span class="unseen">received </span>${size(down)}`;
  return html`<span class="cut bytes">↑ <span class="unseen">sent </span>${size(device.bytes)}${received}</span>
    <small class="cut">${link}</small>`;
}

export const payload = (counts) => Object.entries(counts).reduce((sum, [purpose, bytes]) => sum + (purpose === "headers" ? 0 : bytes), 0);

function Model({ device }) {
  const { model } = device;
  const now = model?.serves;
  const text = !model ? "no model" : now ? html`round ${now.round || "?"}<span class="unseen"> in service</span>` : model.state;
  const [update] = underWay(device);
  return html`<span class=${model ? "cut" : "cut quiet"}>${text}</span>
    ${update ? html`<small class="cut" title="${update.kind} ${stateInWords(update)}">${shortly(update)}</small>` : device.version && html`<small class="cut">version <bdi>${device.version}</bdi></small>`}`;
}

function shortly(update) {
  const share = shareOf(update);
  return share === null ? `${update.kind} ${update.state}` : `${wholePercent(share)} of ${update.kind}`;
}
