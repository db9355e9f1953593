// SPDX-License-Identifier: Apache-2.0
// Where the seconds of a round and the bytes of the fleet went.

import { payload } from "./device_row.js";
import { Bar } from "./glance.js";
import { html, memo } from "./html.js";
import { duration, percent, size } from "./words.js";

const SECONDS = {
  training: "training the trunk", waiting: "waiting for devices", statistics: "taking statistics",
  evaluation: "evaluation", aggregation: "averaging", commit: "commit",
};
const PURPOSES = {
  training: "training", evaluation: "evaluation", statistics: "statistics", client_networks: "client networks",
  soft_labels: "soft labels", models: "released models", offload: "offloaded predictions", protocol: "protocol", headers: "MQTT headers",
};

export const TimeAndTraffic = memo(({ seconds, round, traffic }) => html`<div class="halves">
  ${seconds && html`<div class="card">
    <h3>Seconds of round ${round}, at the server</h3><${Bars} values=${named(SECONDS, seconds)} shown=${duration} />
  </div>`}
  ${traffic && html`<div class="card">
    <h3>Bytes of all devices, since their processes began</h3><${PurposeBars} traffic=${traffic} />
  </div>`}
</div>`);

const named = (titles, values) => Object.entries(titles).map(([key, title]) => [title, values[key] ?? 0]).filter(([, value]) => value > 0);

/** Bytes up and down, by purpose. */
export function PurposeBars({ traffic }) {
  return ["up", "down"].map((way) => {
    const counts = traffic[way] ?? {};
    const total = payload(counts) + (counts.headers ?? 0);
    const title = way === "up" ? "From devices" : "To devices";
    return html`<h4>${title}: ${size(total)}</h4><${Bars} values=${named(PURPOSES, counts)} shown=${size} />`;
  });
}

/** @param values [[title, value]]. @param shown a value in words. */
function Bars({ values, shown }) {
  const total = values.reduce((sum, [, value]) => sum + value, 0);
  const most = Math.max(...values.map(([, value]) => value));
  if (!values.length) return html`<p class="quiet">none</p>`;
  return html`<dl class="bars">${values.map(([title, value]) => html`<div key=${title}>
    <dt>${title}</dt>
    <dd><${Bar} share=${value / most} /><span>${shown(value)} <small>${percent(value / total)}</small></span></dd>
  </div>`)}</dl>`;
}
