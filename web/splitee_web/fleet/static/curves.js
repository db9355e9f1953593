// SPDX-License-Identifier: Apache-2.0
// Accuracies over the rounds, as a drawing and as a table.

import uPlot from "/shared/vendor/uplot-1.6.32/uPlot.esm.js";
import { html, memo, useEffect, useMemo, useRef, useState } from "./html.js";
import { Table } from "./tables.js";
import { percent, several } from "./words.js";

const HEIGHT = 280; // pixels
const CURVES = [
  { key: "adaptive", title: "adaptive", colour: "--series-0", width: 3, dash: [] },
  { key: "exit", title: "exit", colour: "--series-1", width: 2, dash: [8, 4] },
  { key: "trunk", title: "trunk", colour: "--series-2", width: 2, dash: [2, 3] },
];
const BASELINES = {
  alone: { title: "devices alone", colour: "--series-3", width: 1.5, dash: [12, 3, 2, 3] },
  majority: { title: "majority class", colour: "--muted", width: 1.5, dash: [3, 6] },
};
const DEVICE = { colour: "--muted", width: 1, dash: [], faint: true };

/** The fleet's curves, with the adaptive accuracies of its devices if these are few. */
export const FleetCurves = memo(({ history, baselines, devices, version }) => {
  const [withDevices, show] = useState(false);
  const curves = useMemo(() => {
    const rounds = history.map((point) => point.round);
    const own = (withDevices ? devices : []).map((device) => {
      const values = new Map(device.history.map((point) => [point.round, point.adaptive]));
      return { ...DEVICE, title: device.id, values: rounds.map((round) => values.get(round) ?? null) };
    });
    return [...own, ...fleetCurves(history), ...levels(baselines ?? {}, rounds.length)];
  }, [history, baselines, withDevices, withDevices && version]);
  return html`
    ${devices.length > 0 && html`<label class="switch">
      <input type="checkbox" checked=${withDevices} onChange=${(event) => show(event.target.checked)} />
      ${" "}with the adaptive accuracy of each of ${several(devices.length, "device")}
    </label>`}
    <${Curves} rounds=${history.map((point) => point.round)} curves=${curves} title="Accuracy of the fleet over the rounds" />`;
});

export const DeviceCurves = memo(({ history, alone }) => {
  const curves = useMemo(() => [...fleetCurves(history), ...levels({ alone }, history.length)], [history, alone]);
  return html`<${Curves} rounds=${history.map((point) => point.round)} curves=${curves} title="Accuracy of the device over the rounds" />`;
});

const fleetCurves = (history) => CURVES.map((curve) => ({ ...curve, values: history.map((point) => point[curve.key] ?? null) }))
  .filter((curve) => curve.values.some((value) => value !== null));

const levels = (baselines, length) => Object.entries(BASELINES).filter(([key]) => (baselines[key] ?? null) !== null)
  .map(([key, curve]) => ({ ...curve, values: Array(length).fill(baselines[key]) }));

/** Percentages over rounds. @param curves [{title, values, colour, width, dash}] */
function Curves({ rounds, curves, title }) {
  const place = useRef(null);
  const [at, look] = useState(null);
  const theme = useTheme();
  useEffect(() => {
    const data = [rounds, ...curves.map((curve) => curve.values)];
    const plot = new uPlot(options(curves, rounds, place.current.clientWidth, look), data, place.current);
    const observer = new ResizeObserver(() => plot.setSize({ width: place.current.clientWidth, height: HEIGHT }));
    observer.observe(place.current);
    return () => {
      observer.disconnect();
      plot.destroy();
    };
  }, [curves, theme]);
  const shown = Math.min(at ?? Infinity, rounds.length - 1);
  const named = curves.filter((curve) => !curve.faint);
  const last = named.map((curve) => `${curve.title} ${percent(curve.values.at(-1))}`).join(", ");
  const rows = rounds.map((round, index) => [round, ...curves.map((curve) => percent(curve.values[index]))]);
  const head = ["Round", ...curves.map((curve) => html`<bdi>${curve.title}</bdi>`)];
  return html`<figure class="card curves">
    <div ref=${place} role="img" aria-label=${`${title}: ${last} in round ${rounds.at(-1)}`}></div>
    <figcaption>
      <ul class="legend">
        <li class="quiet">round ${rounds[shown]}</li>
        ${named.map((curve) => html`<li key=${curve.title}>
          <${Sample} curve=${curve} />${curve.title} <b>${percent(curve.values[shown])}</b>
        </li>`)}
      </ul>
      <details><summary>As a table</summary><${Table} name=${title} head=${head} rows=${rows} /></details>
    </figcaption>
  </figure>`;
}

const Sample = ({ curve }) => html`<svg class="sample" width="32" height="8" aria-hidden="true"><line x1="0" x2="32" y1="4" y2="4"
  style=${{ stroke: `var(${curve.colour})`, strokeWidth: curve.width, strokeDasharray: curve.dash.join(" ") || "none" }} /></svg>`;

function options(curves, rounds, width, look) {
  const style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(name).trim();
  const font = `12px ${style.getPropertyValue("font-family") || "system-ui, sans-serif"}`;
  const axis = { stroke: colour("--muted"), font, grid: { stroke: colour("--rule"), width: 1 }, ticks: { show: false } };
  return {
    width,
    height: HEIGHT,
    padding: [12, 12, 0, 0],
    legend: { show: false },
    cursor: { drag: { x: false, y: false }, points: { size: 7 } },
    hooks: { setCursor: [(plot) => look(plot.cursor.idx ?? null)] },
    scales: { x: { time: false, range: () => around(rounds) }, y: { range: (_, low, high) => margins(low, high) } },
    axes: [
      { ...axis, incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000], size: 30, label: "round", labelFont: font, labelSize: 18 },
      { ...axis, size: 58, values: (_, marks) => marks.map((mark) => percent(mark, 0)) },
    ],
    series: [{}, ...curves.map((curve) => ({
      stroke: colour(curve.colour),
      width: curve.width,
      dash: curve.dash,
      alpha: curve.faint ? 0.6 : 1,
      spanGaps: true,
      points: { show: rounds.length === 1 },
    }))],
  };
}

/** A single round is drawn in the middle, not at the edge. */
const around = (rounds) => (rounds.length > 1 ? [rounds[0], rounds.at(-1)] : [rounds[0] - 1, rounds[0] + 1]);

const margins = (low, high) => {
  const margin = Math.max(0.08 * (high - low), 0.02);
  return [Math.max(low - margin, 0), Math.min(high + margin, 1)];
};

/** A value that changes with the colours. */
function useTheme() {
  const [isDark, set] = useState(() => matchMedia("(prefers-color-scheme: dark)").matches);
  useEffect(() => {
    const dark = matchMedia("(prefers-color-scheme: dark)");
    const follow = () => set(dark.matches);
    dark.addEventListener("change", follow);
    return () => dark.removeEventListener("change", follow);
  }, []);
  return isDark;
}
