// SPDX-License-Identifier: Apache-2.0
// Releases on their way to the fleet, wave by wave: each has a bar, and a text that says what the bar shows.

import { Mark } from "./glance.js";
import { html } from "./html.js";
import { Named } from "./tables.js";
import { isOpen, ROLLOUT_LEVELS, waveOf } from "./updates.js";
import { ago, count, several, span } from "./words.js";

const PARTS = ["in service", "failed", "asleep", "late", "waiting"];

/** @param rollouts the newest first; those that are over are collapsed. */
export function Rollouts({ rollouts, now }) {
  const [open, over] = [rollouts.filter(isOpen), rollouts.filter((one) => !isOpen(one))];
  const shown = (some) => some.map((one) => html`<${Rollout} key=${`${one.kind} ${one.rollout}`} rollout=${one} now=${now} />`);
  return html`${shown(open)}
    ${over.length > 0 && html`<details class="card" open=${!open.length}>
      <summary>${several(over.length, "earlier rollout")}</summary>${shown(over)}
    </details>`}`;
}

function Rollout({ rollout, now }) {
  const { state, kind, version, reason, waves, wave, created, expires, max_failures: most } = rollout;
  const level = ROLLOUT_LEVELS[state];
  const facts = [
    waveOf(rollout),
    `began ${ago(created, now)}`,
    isOpen(rollout) && (expires > now ? `expires in ${span(expires - now)}` : "expires now"),
    `stops above ${several(most, "failure")}`,
  ].filter(Boolean);
  return html`<article class=${isOpen(rollout) ? "card rollout" : "rollout"} aria-label=${`Rollout ${rollout.rollout}`}>
    <h3><${Named} name=${rollout.rollout} /> <span class="state ${level}"><${Mark} level=${level} />${state}</span></h3>
    <p>${kind} <bdi>${version}</bdi><span class="quiet">, ${facts.join(", ")}</span></p>
    ${reason && html`<p class="reason ${level}"><bdi>${reason}</bdi></p>`}
    <ol class="waves">${waves.map((one, index) => html`<${Wave} key=${index} of=${one} number=${index + 1} hasBegun=${index < wave} />`)}</ol>
  </article>`;
}

function Wave({ of, number, hasBegun }) {
  const counts = countsOf(of);
  const parts = PARTS.filter((part) => counts[part] > 0);
  const words = hasBegun ? parts.map((part) => `${count(counts[part])} ${part}`).join(", ") : "not begun";
  return html`<li>
    <b>Wave ${number}</b>
    <span class="parts" aria-hidden="true">${hasBegun && parts.map((part) =>
      html`<i key=${part} class=${part.replace(" ", "-")} style=${{ flexGrow: counts[part] }} />`)}</span>
    <span>${several(of.devices, "device")}${words && `: ${words}`}</span>
  </li>`;
}

function countsOf({ devices, in_service: served, failed, asleep, late }) {
  return { "in service": served, failed, asleep, late, waiting: Math.max(devices - served - failed - asleep - late, 0) };
}
