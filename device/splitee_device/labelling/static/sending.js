// SPDX-License-Identifier: Apache-2.0
// Sends actions to the device, one after the other, and repeats each until the device replies.

const AGAIN = 1000; // milliseconds after which an action without a reply is sent again

export class Sending {
  // `waiting(n)` receives the number of actions that wait for a device that does not reply; 0: it does again.
  constructor(waiting) {
    this.queue = [];
    this.busy = false;
    this.waiting = waiting;
  }

  // Resolves to the reply, or to {failed} for an action that was refused.
  send(path, body) {
    return new Promise((resolve) => {
      this.queue.push({ path, body, resolve });
      this.work();
    });
  }

  async work() {
    if (this.busy) return;
    this.busy = true;
    while (this.queue.length) {
      const { path, body, resolve } = this.queue[0];
      const reply = await once(path, body);
      if (reply === undefined) {
        this.waiting(this.queue.length);
        await new Promise((go) => setTimeout(go, AGAIN));
        continue;
      }
      this.waiting(0);
      this.queue.shift();
      resolve(reply);
    }
    this.busy = false;
  }
}

// undefined: there was no reply.
async function once(path, body) {
  try {
    const headers = { "Content-Type": "application/json" };
    const response = await fetch(path, { method: "POST", headers, body: JSON.stringify(body) });
    if (response.status === 401) location.reload();
    if (response.ok || response.status === 409) return await response.json();
    return { failed: (await response.text()).trim() || `status ${response.status}` };
  } catch {
    return undefined;
  }
}
