// SPDX-License-Identifier: Apache-2.0
// The page as a whole: trouble with its connections, the fleet at a glance, then its parts.

import { judged } from "./attention.js";
import { Announcements } from "./announcements.js";
import { FleetClasses } from "./confusion.js";
import { FleetCurves } from "./curves.js";
import { DeviceDetails } from "./device_details.js";
import { DeviceList } from "./device_list.js";
import { EventLog } from "./event_log.js";
import { Glance } from "./glance.js";
import { html, useEffect } from "./html.js";
import { useOpened } from "./opened.js";
import { Releases } from "./releases.js";
import { Seasons } from "./seasons.js";
import { TimeAndTraffic } from "./time_and_traffic.js";
import { updatesOf } from "./updates.js";
import { clock, span } from "./words.js";

export function App({ store, now }) {
  const { fleet } = store;
  const [opened, open] = useOpened();
  useEffect(() => { document.title = fleet?.fleet ? title(fleet) : "Fleet"; });
  if (!fleet?.fleet) return html`<main><${Troubles} store=${store} now=${now} /><h1>Fleet</h1><p role="status">Connecting …</p></main>`;
  const devices = [...store.devices.values()];
  const all = judged(devices, fleet, now);
  const withCurves = devices.filter((device) => device.history?.length);
  const hasClasses = fleet.confusion || devices.some((device) => device.confusion);
  const hasReleases = fleet.releases?.length || fleet.rollouts?.length || devices.some((device) => updatesOf(device).length);
  const parts = [
    ["devices", "Devices", html`<${DeviceList} all=${all} fleet=${fleet} now=${now} open=${open} />`],
    fleet.history?.length && ["accuracy", "Accuracy", html`<${FleetCurves} history=${fleet.history}
      baselines=${fleet.baselines} devices=${withCurves} version=${store.curves} />`],
    hasClasses && ["classes", "Classes", html`<${FleetClasses} fleet=${fleet} devices=${store.devices} />`],
    (fleet.seconds || fleet.traffic) && ["time", "Time and bytes", html`<${TimeAndTraffic} seconds=${fleet.seconds}
      round=${fleet.metrics?.round} traffic=${fleet.traffic} />`],
    hasReleases && ["releases", "Releases", html`<${Releases} fleet=${fleet} all=${all} now=${now} open=${open} />`],
    fleet.seasons?.length && ["seasons", "Seasons", html`<${Seasons} fleet=${fleet} devices=${devices} now=${now} />`],
    ["events", "Events", html`<${EventLog} log=${store.log} now=${now} devices=${store.devices} open=${open} />`],
  ].filter(Boolean);
  return html`
    <main>
      <${Troubles} store=${store} now=${now} />
      <${Glance} fleet=${fleet} all=${all} now=${now} broker=${store.broker} />
      <nav aria-label="Parts of this page"><ul>
        ${parts.map(([id, name]) => html`<li key=${id}><a href="#${id}">${name}</a></li>`)}
      </ul></nav>
      ${parts.map(([id, name, part]) => html`<section key=${id} aria-labelledby=${id}>
        <h2 id=${id} tabindex="-1">${name}</h2>${part}
      </section>`)}
      <${Announcements} log=${store.log} lost=${store.lost} />
    </main>
    ${opened && html`<${DeviceDetails} key=${opened} id=${opened} device=${store.devices.get(opened)} fleet=${fleet}
      now=${now} close=${() => open(null)} />`}`;
}

function title({ fleet, run, phase }) {
  if (!run || !phase) return fleet;
  return phase.phase === "finished" ? `${fleet}: finished` : `${fleet}: round ${phase.round} of ${run.rounds}`;
}

/** Why the page receives nothing new, if so: what it shows below is outdated. */
function Troubles({ store, now }) {
  const since = store.lost && store.lost / 1000 + store.ahead;
  if (since) {
    return html`<p class="trouble"><b>The page's server has not replied since ${clock(since, now)}</b>, for ${span(now - since)}.
      The page tries again${store.fleet && "; what it shows below is from that time"}.</p>`;
  }
  const { broker } = store;
  if (!broker || broker.connected) return null;
  return html`<p class="trouble"><b>No connection to the broker since ${clock(broker.since, now)}</b>, for ${span(now - broker.since)}:
    ${" "}<bdi>${broker.text}</bdi>. The page tries again${store.fleet?.server && "; what it shows below is from that time"}.</p>`;
}
