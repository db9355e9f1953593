// SPDX-License-Identifier: Apache-2.0
// The fleet at a glance: the most important figures.

import { html } from "./html.js";
import { Named } from "./tables.js";
import { isOpen, ROLLOUT_LEVELS, waveOf } from "./updates.js";
import { clock, count, images, percent, PHASES, points, several, span, UNKNOWN } from "./words.js";

const BROKER_LOST = html`<b class="bad">not connected</b>`;
const BROKER_THERE = html`<b class="good">connected</b>`;
const SHOWN = 3; // devices, and rollouts, that are named

export function Glance({ fleet, all, now, broker }) {
  const { run, server } = fleet;
  const { level, text } = headline(fleet, all, now);
  return html`
    <header>
      <h1><bdi>${fleet.fleet}</bdi></h1>
      <p class="headline ${level}"><${Mark} level=${level} />${text}</p>
      <ul class="facts">
        <li>Server: <b class=${serverLevel(fleet)}>${server ? server.state : "unknown"}</b>
          ${server?.doing && html`, <bdi>${server.doing}</bdi>`}</li>
        <li>Broker: ${broker?.connected === false ? BROKER_LOST : BROKER_THERE}</li>
        ${run && html`<li><bdi>${run.network}</bdi>, ${count(run.num_classes)} classes</li>
          <li>Strategy: <bdi>${run.strategy ?? "sequential"}</bdi></li>`}
        ${(fleet.rollouts ?? []).filter(isOpen).slice(0, SHOWN).map((one) => html`<li key=${one.rollout}>Rollout${" "}
          <bdi>${one.rollout}</bdi>: <b class=${ROLLOUT_LEVELS[one.state]}>${one.state}</b>, ${waveOf(one)}</li>`)}
        ${fleet.malformed > 0 && html`<li class="warn">${several(fleet.malformed, "malformed message")} ignored</li>`}
        ${server?.rejected > 0 && html`<li class="warn">${several(server.rejected, "message")} rejected</li>`}
        ${server?.dismissed?.length > 0 && html`<li>${several(server.dismissed.length, "device")} dismissed</li>`}
      </ul>
    </header>
    <dl class="glance">
      <${Round} fleet=${fleet} now=${now} />
      <${Accuracy} fleet=${fleet} />
      <${Devices} fleet=${fleet} all=${all} />
      <${Waiting} fleet=${fleet} now=${now} />
      <${End} fleet=${fleet} now=${now} />
    </dl>`;
}

const MARKS = { good: "●", quiet: "○", warn: "▲", bad: "■" };

export const Mark = ({ level }) => html`<span class="mark ${level}" aria-hidden="true">${MARKS[level]}</span>`;

function serverLevel({ server, phase }) {
  if (!server) return "warn";
  if (server.state === "online") return "good";
  return phase?.phase === "finished" ? "quiet" : "bad";
}

/** The state of the fleet in one sentence. */
function headline(fleet, all, now) {
  const { server, run, phase, committed } = fleet;
  if (!server && !run && !all.length) {
    return { level: "warn", text: "No server and no device of this fleet has connected yet." };
  }
  if (phase?.phase === "finished") {
    const predicting = all.filter((one) => one.device.serving).length;
    const then = predicting ? html` ${several(predicting, "device")} predict${predicting === 1 ? "s" : ""}.` : "";
    return { level: "good", text: html`Finished after ${several(committed, "round")}.${then}` };
  }
  if (server && server.state !== "online") {
    const since = fleet.server_seen ? ` for ${span(now - fleet.server_seen)}` : "";
    return { level: "bad", text: `The server is offline${since}; the run stands still at round ${phase?.round ?? committed}.` };
  }
  if (!run || !phase) return { level: "quiet", text: "No round yet." };
  const what = PHASES[phase.phase] ?? phase.phase;
  const among = phase.participants ? `, with ${several(phase.participants, "device")}` : "";
  const held = all.filter((one) => one.concerns.some((concern) => concern.kind === "waited for"));
  const whom = held.length > 1 ? several(held.length, "device") : html`<bdi>${held[0]?.device.id}</bdi>`;
  const waits = held.length > 0 && html`; it waits for ${whom}`;
  const text = html`Round ${phase.round} of ${run.rounds}: ${what}${among}${waits}.`;
  return { level: held.length ? "warn" : "good", text };
}

function Figure({ title, children, note, level = "" }) {
  return html`<div class="figure"><dt>${title}</dt><dd><b class=${level}>${children}</b>${note && html`<span>${note}</span>`}</dd></div>`;
}

function Round({ fleet, now }) {
  const { run, phase, committed, opened } = fleet;
  if (!run) return html`<${Figure} title="Round" note="no run yet">${UNKNOWN}<//>`;
  const isOver = phase?.phase === "finished";
  const since = opened && !isOver ? `, for ${span(now - opened)}` : "";
  const note = phase ? `${PHASES[phase.phase] ?? phase.phase}${since}; ${committed} committed` : `${committed} committed`;
  const share = Math.min(committed / run.rounds, 1);
  return html`<${Figure} title="Round" note=${html`${note}<${Bar} share=${share} />`}>${phase?.round ?? committed} of ${run.rounds}<//>`;
}

/** A drawing of a share that the text beside it gives. */
export const Bar = ({ share }) => html`<span class="bar" aria-hidden="true">
  <i style=${{ width: `${100 * Math.min(share, 1)}%` }}></i></span>`;

function Accuracy({ fleet }) {
  const { metrics, history = [], baselines } = fleet;
  const now = metrics?.fleet;
  if (!now?.images) return html`<${Figure} title="Adaptive accuracy" note="no round is evaluated yet">${UNKNOWN}<//>`;
  const before = history.filter((point) => point.round < metrics.round).at(-1);
  const gain = before?.adaptive !== undefined && now.adaptive_accuracy !== undefined
    ? `; ${points(now.adaptive_accuracy - before.adaptive)} since round ${before.round}` : "";
  const alone = baselines?.alone !== undefined && baselines?.alone !== null ? `; alone ${percent(baselines.alone)}` : "";
  const note = html`exit ${percent(now.exit_accuracy)}, trunk ${percent(now.trunk_accuracy)}${alone}
    <br />round ${metrics.round}, ${images(now.images)}${gain}`;
  return html`<${Figure} title="Adaptive accuracy" note=${note}>${percent(now.adaptive_accuracy)}<//>`;
}

function Devices({ fleet, all }) {
  const online = all.filter((one) => one.device.online).length;
  const troubled = all.filter((one) => one.concerns.length).length;
  const doing = Object.entries(Object.groupBy(all, (one) => one.activity)).map(([name, ones]) => `${count(ones.length)} ${name}`);
  const needs = troubled ? `▲ ${count(troubled)} need${troubled === 1 ? "s" : ""} attention` : "none needs attention";
  const note = html`${doing.sort().join(", ")}${doing.length ? html`<br />` : ""}
    <span class=${troubled ? "warn" : "good"}>${needs}</span>`;
  return html`<${Figure} title="Devices online" note=${all.length ? note : "none is known yet"}>${count(online)} of ${count(all.length)}<//>`;
}

function Waiting({ fleet, now }) {
  const waiting = fleet.waiting ?? [];
  if (fleet.server?.state === "offline" || !waiting.length) {
    const isThere = fleet.server?.state === "online";
    const note = fleet.phase?.phase === "finished" ? "the run is over" : isThere ? "the run goes on by itself" : "no server is online";
    return html`<${Figure} title="Waiting for" note=${note}>nobody<//>`;
  }
  const [first] = waiting;
  const since = `since ${clock(first.since, now)}, for ${span(now - first.since)}`;
  if (waiting.length === 1) {
    return html`<${Figure} title="Waiting for" note=${since}><${Named} name=${first.device} /><//>`;
  }
  const named = waiting.slice(0, SHOWN).map((one, index) => html`${index > 0 && ", "}<bdi>${one.device}</bdi>`);
  const rest = waiting.length > SHOWN ? ` and ${count(waiting.length - SHOWN)} more` : "";
  const note = html`<span class="cut">${named}${rest}</span>${since}`;
  return html`<${Figure} title="Waiting for" note=${note}>${several(waiting.length, "device")}<//>`;
}

function End({ fleet, now }) {
  const { estimate, phase, history } = fleet;
  if (phase?.phase === "finished") {
    const last = history?.at(-1)?.time;
    return html`<${Figure} title="End" note=${last ? `last round evaluated at ${clock(last, now)}` : ""}>over<//>`;
  }
  if (!estimate) return html`<${Figure} title="Estimated end" note="known after the first round">${UNKNOWN}<//>`;
  const note = now > estimate ? "later than earlier rounds suggested" : `in ${span(estimate - now)}`;
  return html`<${Figure} title="Estimated end" note=${note}>${clock(estimate, now)}<//>`;
}
