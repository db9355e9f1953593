// SPDX-License-Identifier: Apache-2.0
// The page's copy of the fleet's state: applies the server's events, and reports changes.

const AGAIN = 3000; // milliseconds to the next attempt, if the browser itself makes none
const SILENCE = 30000; // milliseconds without an event after which the page checks its server
const TIMEOUT = 5000; // milliseconds for its reply
const LOG = 500; // events that are kept

/** Whether two values of JSON are equal. */
export function same(one, other) {
  if (one === other) return true;
  if (typeof one !== "object" || typeof other !== "object" || one === null || other === null) return false;
  if (Array.isArray(one) !== Array.isArray(other)) return false;
  const names = Object.keys(one);
  return names.length === Object.keys(other).length && names.every((name) => same(one[name], other[name]));
}

/** `next`, but with the objects of `last` for equal fields, so that they are not drawn again. */
function keeping(last, next) {
  for (const name of Object.keys(next)) if (last && same(last[name], next[name])) next[name] = last[name];
  return next;
}

export class Store {
  /** `changed`: called after each change. */
  constructor(changed) {
    this.changed = changed;
    this.fleet = null; // the snapshot without its devices
    this.devices = new Map(); // by id
    this.curves = 0; // grows when the curve of a device changes
    this.log = []; // the newest first
    this.broker = null;
    this.lost = null; // milliseconds, by this browser's clock: since when the page's server has not replied
    this.ahead = 0; // seconds by which the server's clock is ahead of the browser's
    this.heard = Date.now();
  }

  /** Seconds since the epoch, by the clock of the page's server. */
  get now() {
    return Date.now() / 1000 + this.ahead;
  }

  open(url = "/events") {
    const source = new EventSource(url);
    const take = { whole: this.#whole, fleet: this.#fleet, devices: this.#some, gone: this.#gone, log: this.#log, broker: this.#broker };
    for (const [name, fold] of Object.entries(take)) {
      source.addEventListener(name, (event) => this.#take(JSON.parse(event.data), fold));
    }
    source.onopen = () => this.#heard();
    source.onerror = () => {
      this.#silent();
      if (source.readyState === EventSource.CLOSED) setTimeout(() => this.open(url), AGAIN);
    };
    clearInterval(this.watch);
    this.watch = setInterval(() => this.#lookAfter(), TIMEOUT);
  }

  /** An open stream may be dead without an error, when the server's machine has lost its power. */
  async #lookAfter() {
    if (Date.now() - this.heard < SILENCE) return;
    try {
      await fetch("/", { method: "HEAD", cache: "no-store", signal: AbortSignal.timeout(TIMEOUT) });
      this.heard = Date.now();
    } catch {
      this.#silent();
    }
  }

  #silent() {
    this.lost ??= Date.now();
    this.changed();
  }

  #heard() {
    this.heard = Date.now();
    this.lost = null;
    this.changed();
  }

  #take(data, fold) {
    this.ahead = data.now - Date.now() / 1000;
    fold.call(this, data);
    this.#heard();
  }

  #whole(data) {
    this.#broker(data);
    this.#fleet(data);
    const before = this.devices;
    this.devices = new Map(data.fleet.devices.map((device) => [device.id, keeping(before.get(device.id), device)]));
    this.curves += 1;
    this.log = data.log.toReversed().slice(0, LOG);
  }

  #fleet(data) {
    const { devices, ...fleet } = data.fleet;
    this.fleet = keeping(this.fleet, fleet);
  }

  #some(data) {
    for (const device of data.devices) {
      this.devices.set(device.id, { ...this.devices.get(device.id), ...device }); // only changed fields come
      if (device.history) this.curves += 1;
    }
  }

  #gone(data) {
    for (const id of data.gone) this.devices.delete(id);
  }

  #log(data) {
    this.log = [...data.log.toReversed(), ...this.log].slice(0, LOG);
  }

  #broker(data) {
    this.broker = data.broker;
  }
}
