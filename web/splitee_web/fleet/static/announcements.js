// SPDX-License-Identifier: Apache-2.0
// Announcements for screen readers: few sentences, on the most important events.

import { html, useEffect, useRef, useState } from "./html.js";
import { several } from "./words.js";

const PAUSE = 5000; // milliseconds between two sentences
const TOLD = ["server", "broker", "offline", "stopped"]; // parts of the kinds of events

/** @param log events, the newest first. @param lost since when the page's server has not replied, or null. */
export function Announcements({ log, lost }) {
  const [said, say] = useState("");
  const heard = useRef({ newest: log[0], lost: null, at: -Infinity });
  useEffect(() => {
    const last = heard.current;
    const isLost = lost !== null;
    if (isLost !== (last.lost !== null)) {
      say(isLost ? "The page's server does not reply." : "The page's server replies again.");
      heard.current = { newest: log[0], lost, at: performance.now() };
      return;
    }
    if (log[0] === last.newest || performance.now() - last.at < PAUSE) return;
    const end = log.indexOf(last.newest);
    const fresh = log.slice(0, Math.max(end, 0)).filter((one) => TOLD.some((part) => one.kind.includes(part)));
    if (fresh.length === 1) say(`${fresh[0].device ?? ""} ${fresh[0].text}`);
    if (fresh.length > 1) say(`${several(fresh.length, "event")}, the last: ${fresh[0].device ?? ""} ${fresh[0].text}`);
    heard.current = { newest: log[0], lost, at: fresh.length ? performance.now() : last.at };
  });
  return html`<p class="unseen" role="status">${said}</p>`;
}
