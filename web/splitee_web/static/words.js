// SPDX-License-Identifier: Apache-2.0
// Figures with their units for people, on every page.

export const UNKNOWN = "–";
const BYTES = [["GB", 1e9], ["MB", 1e6], ["KB", 1e3]];
const SPANS = [["d", 86400], ["h", 3600], ["min", 60]];
const NUMBER = new Intl.NumberFormat("en-US");
const CLOCK = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const DATE = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit" });
const LONG_AGO = 20 * 3600; // seconds; beyond that the date is shown, too

const isKnown = (value) => value !== null && value !== undefined;

export const count = NUMBER.format;
export const fixed = (value, digits) => (isKnown(value) ? value.toFixed(digits) : UNKNOWN);
export const percent = (share, digits = 1) => (isKnown(share) ? `${(100 * share).toFixed(digits)} %` : UNKNOWN);
export const points = (difference) => `${difference < 0 ? "−" : "+"}${Math.abs(100 * difference).toFixed(1)} points`;
export const degrees = (value) => (isKnown(value) ? `${value.toFixed(0)} °C` : UNKNOWN);
export const wholePercent = (share) => percent(share, 0);
export const several = (number, one, many = `${one}s`) => `${count(number)} ${number === 1 ? one : many}`;
export const images = (number) => several(number, "image");
export const memory = (bytes) => (isKnown(bytes) ? `${count(Math.round(bytes / 2 ** 20))} MiB` : UNKNOWN);
export const milliseconds = (value) => (isKnown(value) ? `${Number(value.toPrecision(value < 1 ? 1 : 3))} ms` : UNKNOWN);

const unitOf = (bytes) => BYTES.find(([, length]) => bytes >= length) ?? ["B", 1];

export function size(bytes) {
  if (!isKnown(bytes)) return UNKNOWN;
  const [unit, length] = unitOf(bytes);
  const value = bytes / length;
  return `${value.toFixed(unit === "B" || value >= 100 ? 0 : 1)} ${unit}`;
}

/** Bytes out of a total, in the total's unit: "1.2 of 4.0 MB". */
export function partOf(bytes, whole) {
  const [unit, length] = unitOf(whole);
  const [part, all] = [bytes, whole].map((value) => (value / length).toFixed(unit === "B" ? 0 : 1));
  return `${part} of ${all} ${unit}`;
}

export function bitRate(bytesASecond) {
  if (!isKnown(bytesASecond)) return UNKNOWN;
  return `${Number(((8 * bytesASecond) / 1e6).toPrecision(3))} Mbit/s`;
}

/** How long ago, or from now: 3 s, 5 min, 2 h, 4 d; never negative, even if clocks differ. */
export function span(seconds) {
  const [unit, length] = SPANS.find(([, length]) => seconds >= 2 * length) ?? ["s", 1];
  return `${Math.max(seconds / length, 0).toFixed(0)} ${unit}`;
}

export const ago = (time, now) => (isKnown(time) ? `${span(now - time)} ago` : "never");

/** How long something took: "1 min 15 s", "4.2 s", "83 ms". */
export function duration(seconds) {
  if (!isKnown(seconds)) return UNKNOWN;
  if (seconds < 1) return milliseconds(1000 * seconds);
  if (seconds < 60) return `${seconds < 10 ? seconds.toFixed(1) : seconds.toFixed(0)} s`;
  const minutes = Math.floor(seconds / 60);
  return minutes < 60 ? `${minutes} min ${Math.floor(seconds % 60)} s` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

/** The time of day; with the date if it is another day. */
export function clock(time, now) {
  const far = Math.abs(now - time) > LONG_AGO;
  return (far ? DATE : CLOCK).format(new Date(1000 * time));
}
