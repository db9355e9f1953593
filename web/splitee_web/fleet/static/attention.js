// SPDX-License-Identifier: Apache-2.0
// What a device is doing, what needs attention, and in which order devices are shown.

import { failuresOf, isUpdating, updatesOf } from "./updates.js";
import { degrees, percent, span } from "./words.js";

const HOT = 80; // degrees Celsius: small computers slow down from here on
const NEAR = 0.9; // of its memory's limit
const PATIENCE = 10; // seconds for which the server may wait for a device without a notice

/** What is wrong with a device, the worst first: {kind, text}. */
export function concerns(device, fleet, now) {
  const found = [];
  if (!device.online && !hasLeft(device)) found.push({ kind: "offline", text: `offline for ${span(now - device.seen)}` });
  if (fleet.server?.quarantined?.includes(device.id)) found.push({ kind: "quarantined", text: "in quarantine" });
  const waited = device.waiting_since ? now - device.waiting_since : 0;
  if (waited > PATIENCE) found.push({ kind: "waited for", text: device.online ? `waited for, ${span(waited)}` : "waited for" });
  if (device.temperature >= HOT) found.push({ kind: "hot", text: `hot, ${degrees(device.temperature)}` });
  const share = memoryShare(device);
  if (share >= NEAR) found.push({ kind: "memory", text: `memory ${percent(share, 0)} full` });
  for (const { kind, state } of failuresOf(device)) found.push({ kind: "update", text: `${kind} ${state}` });
  return found;
}

/** Whether it left after the end of the run, as it should. */
const hasLeft = (device) => !device.online && device.doing === "finished";

export function memoryShare(device) {
  return device.memory && device.memory_limit ? device.memory / device.memory_limit : undefined;
}

/** What it does, in a word or two. */
export function activity(device, fleet) {
  if (!device.online) return hasLeft(device) ? "finished, gone" : "offline";
  const sampled = fleet.run && !["all", "100%"].includes(fleet.run.sample ?? "all") && fleet.phase?.participants;
  if (sampled && !device.in_phase && device.doing === "waiting") return "not picked";
  return device.doing || "starting";
}

export const FILTERS = [
  { key: "all", title: "All", holds: () => true },
  { key: "attention", title: "Need attention", holds: (one) => one.concerns.length > 0 },
  { key: "offline", title: "Offline", holds: (one) => !one.device.online },
  { key: "training", title: "Training", holds: (one) => one.activity === "training" },
  { key: "evaluating", title: "Evaluating", holds: (one) => one.activity === "evaluating" },
  { key: "waiting", title: "Waiting", holds: (one) => ["waiting", "not picked", "starting"].includes(one.activity) },
  { key: "serving", title: "Serving", holds: (one) => Boolean(one.device.serving) || one.activity === "serving" },
  { key: "updating", title: "Updating", holds: (one) => isUpdating(one.device) },
  { key: "failed", title: "Update failed", holds: (one) => failuresOf(one.device).length > 0 },
  { key: "finished", title: "Finished", holds: (one) => one.device.doing === "finished" },
];

// By what devices may be sorted within their groups; `first`: the direction that is wanted most.
export const ORDERS = {
  id: { title: "name", first: 1, of: (device) => device.id },
  seen: { title: "last seen", first: 1, of: (device) => device.seen },
  cut: { title: "cut", first: 1, of: (device) => device.cut },
  progress: { title: "progress", first: 1, of: (device) => device.round + (device.steps ? device.step / device.steps : 0) },
  loss: { title: "loss", first: -1, of: (device) => device.loss },
  exit: { title: "exit accuracy", first: 1, of: (device) => device.exit_accuracy },
  trunk: { title: "trunk accuracy", first: 1, of: (device) => device.trunk_accuracy },
  adaptive: { title: "adaptive accuracy", first: 1, of: (device) => device.adaptive_accuracy },
  weakest: { title: "weakest class", first: 1, of: (device) => device.weakest_class?.recall },
  temperature: { title: "temperature", first: -1, of: (device) => device.temperature },
  memory: { title: "share of its memory", first: -1, of: memoryShare },
  bytes: { title: "bytes", first: -1, of: (device) => device.bytes },
  model: { title: "model in service", first: 1, of: (device) => device.model?.serves?.round },
};

const byName = new Intl.Collator("en", { numeric: true }).compare;

/** Devices with their state: [{device, concerns, activity}]. */
export function judged(devices, fleet, now) {
  return devices.map((device) => ({
    device,
    concerns: concerns(device, fleet, now),
    activity: activity(device, fleet),
  }));
}

/** The devices that match a filter and a text, in two groups: ids of those that need attention, and of the rest. */
export function arranged(all, { filter, text, order, direction }) {
  const wanted = text.trim().toLowerCase();
  const holds = FILTERS.find((one) => one.key === filter).holds;
  const kept = all.filter((one) => holds(one) && (!wanted || words(one).includes(wanted)));
  const { of } = ORDERS[order];
  const value = new Map(kept.map((one) => [one, of(one.device)]));
  kept.sort((one, other) => compared(value.get(one), value.get(other), direction) || byName(one.device.id, other.device.id));
  const [attention, rest] = [[], []];
  for (const one of kept) (one.concerns.length ? attention : rest).push(one.device.id);
  return { attention, rest };
}

/** The text in which a search looks. */
function words({ device, activity, concerns }) {
  const said = [
    device.id, activity, device.stage, device.version, device.weakest_class?.name, device.model?.state, device.predicted_state?.label,
  ];
  const updates = updatesOf(device).flatMap((one) => [one.latest, one.state]);
  return [...said, ...updates, ...concerns.map((one) => one.text)].join("\n").toLowerCase();
}

/** Unknown values come last, whatever the direction. */
function compared(one, other, direction) {
  const [isOne, isOther] = [one ?? null, other ?? null].map((value) => value !== null);
  if (!isOne || !isOther) return isOther - isOne;
  return direction * (typeof one === "string" ? byName(one, other) : one - other);
}
