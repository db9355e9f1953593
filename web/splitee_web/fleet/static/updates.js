// SPDX-License-Identifier: Apache-2.0
// Updates on their way to the fleet and to a device, and failed ones, as data and as text.

import { partOf } from "./words.js";

const UNDER_WAY = ["offered", "downloading", "trying"];
const OPEN_ROLLOUTS = ["running", "paused", "stopped"];
const FAILED = ["failed", "rolled back"];

export const ROLLOUT_LEVELS = {
  running: "good", finished: "good", paused: "warn", stopped: "bad", "rolled back": "warn", expired: "quiet",
};

export const isOpen = (rollout) => OPEN_ROLLOUTS.includes(rollout.state);

export const waveOf = ({ wave, waves }) => `wave ${Math.min(wave, waves.length)} of ${waves.length}`;

/** Of each kind of release that the server has for a device: {kind, state, latest, installed, have, size, reason}. */
export function updatesOf({ update }) {
  return ["model", "software"].map((kind) => ({ kind, ...update?.[kind] })).filter((one) => one.state);
}

export const underWay = (device) => updatesOf(device).filter((one) => UNDER_WAY.includes(one.state));

/** What failed: {kind, state, latest, reason}; of a model the device's own report, if the server has none. */
export function failuresOf(device) {
  const { model } = device;
  const told = updatesOf(device);
  const own = model && !told.some((one) => one.kind === "model") ? [{ kind: "model", latest: model.release.slice(0, 8), ...model }] : [];
  return [...own, ...told].filter((one) => FAILED.includes(one.state));
}

export const isUpdating = (device) => underWay(device).length > 0 || ["downloading", "trying"].includes(device.model?.state);

/** "downloading 1.2 of 4.0 MB", "trying", "failed". */
export const stateInWords = ({ state, have, size }) => (state === "downloading" && size ? `downloading ${partOf(have, size)}` : state);

/** How much of it is on the device, from 0 to 1; null if it is not downloading. */
export const shareOf = ({ state, have, size }) => (state === "downloading" && size ? Math.min(have / size, 1) : null);
