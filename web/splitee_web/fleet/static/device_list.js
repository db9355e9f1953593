// SPDX-License-Identifier: Apache-2.0
// All devices: what needs attention first, filtered and sorted; only the rows in sight are drawn.

import { arranged, FILTERS, ORDERS } from "./attention.js";
import { COLUMNS, DeviceRow } from "./device_row.js";
import { html, useLayoutEffect, useMemo, useRef, useState } from "./html.js";
import { count, several } from "./words.js";

const SETTLED = 2; // seconds for which rows keep their places, while their figures change
const NOBODY = "No device has connected yet. Devices show up here by themselves once they are started.";
const BEYOND = 3; // rows above and below those in sight that are drawn too
const BLOCK = 4; // rows that are added and removed together: if more than one element is removed, Preact moves all others
const TURNS = 4; // groups in which rows are drawn again, one after the other, once per second

export function DeviceList({ all, fleet, now, open }) {
  const [choice, choose] = useState({ filter: "all", text: "", order: "id", direction: 1 });
  const change = (some) => choose({ ...choice, ...some });
  const byId = new Map(all.map((one) => [one.device.id, one]));
  const { attention, rest } = useArranged(all, choice, now);
  const rows = useMemo(() => listed(attention, rest), [attention, rest]);
  const found = attention.length + rest.length;
  return html`
    <${Choices} all=${all} choice=${choice} change=${change} found=${found} />
    ${found > 0 && html`<${Rows} rows=${rows} byId=${byId} fleet=${fleet} now=${now} open=${open} choice=${choice} change=${change} />`}
    ${!found && html`<p class="card empty">${all.length ? "No device matches." : NOBODY}</p>`}`;
}

/** The order of the devices; computed anew if the choice or the set of devices changes, else now and then. */
function useArranged(all, choice, now) {
  const kept = useRef({ made: -Infinity });
  const last = kept.current;
  const troubled = all.filter((one) => one.concerns.length).map((one) => one.device.id).join(" ");
  const isSame = last.choice === choice && last.total === all.length && last.troubled === troubled;
  if (!isSame || now - last.made > SETTLED || now < last.made) {
    const next = arranged(all, choice);
    const isAlike = last.order && ["attention", "rest"].every((group) => alike(last.order[group], next[group]));
    kept.current = { choice, total: all.length, troubled, made: now, order: isAlike ? last.order : next };
  }
  return kept.current.order;
}

const alike = (some, others) => some.length === others.length && some.every((id, index) => id === others[index]);

/** The rows of the list: headings and devices. */
function listed(attention, rest) {
  const rows = [];
  if (attention.length) rows.push({ heading: `Need attention: ${several(attention.length, "device")}`, level: "warn" });
  rows.push(...attention.map((id) => ({ id })));
  if (attention.length && rest.length) rows.push({ heading: `All others: ${several(rest.length, "device")}`, level: "quiet" });
  rows.push(...rest.map((id) => ({ id })));
  return rows;
}

function Choices({ all, choice, change, found }) {
  const isWhole = choice.filter === "all" && !choice.text;
  const said = useMemo(() => (isWhole ? "" : `${several(found, "device")} found`), [choice]); // once a choice
  const sort = (order) => change({ order, direction: ORDERS[order].first });
  const isChosen = (key) => choice.filter === key;
  return html`<div class="choices" role="search" aria-label="Devices">
    <label class="find"><span class="unseen">Find devices</span>
      <input type="search" placeholder="Find devices" value=${choice.text} maxlength="200"
        onInput=${(event) => change({ text: event.target.value })} /></label>
    <div class="chips" role="group" aria-label="State">
      ${FILTERS.map(({ key, title, holds }) => {
        const number = all.filter(holds).length;
        if (!number && key !== "all" && !isChosen(key)) return null;
        return html`<button key=${key} type="button" aria-pressed=${String(isChosen(key))}
          onClick=${() => change({ filter: key })}>${title} <span>${count(number)}</span></button>`;
      })}
    </div>
    <label class="sort">Sort by ${" "}<select value=${choice.order} onChange=${(event) => sort(event.target.value)}>
      ${Object.entries(ORDERS).map(([key, { title }]) => html`<option key=${key} value=${key}>${title}</option>`)}
    </select></label>
    <button type="button" class="turn" onClick=${() => change({ direction: -choice.direction })}>
      ${choice.direction > 0 ? "▲ ascending" : "▼ descending"}</button>
    <span class="unseen" role="status">${said}</span>
  </div>`;
}

/** The rows in sight of a list, in a window of its own. */
function Rows({ rows, byId, fleet, now, open, choice, change }) {
  const frame = useRef(null);
  const [view, look] = useState({ top: 0, height: 800, row: 64, heading: 40 });
  const [focused, focus] = useState(null);
  const wanted = useRef(null);
  const { tops, total } = useMemo(() => placed(rows, view), [rows, view.row, view.heading]);
  useSight(frame, look);
  useLayoutEffect(() => {
    if (wanted.current === null) return;
    const target = [...frame.current.querySelectorAll("[data-id]")].find((row) => row.dataset.id === wanted.current);
    target?.querySelector("button")?.focus({ preventScroll: true });
    wanted.current = null;
  }, [focused]);
  const goTo = (index) => {
    const area = frame.current;
    if (tops[index] < area.scrollTop) area.scrollTop = tops[index];
    const end = tops[index] + view.row + area.querySelector(".head").offsetHeight;
    if (end > area.scrollTop + area.clientHeight) area.scrollTop = end - area.clientHeight;
    wanted.current = rows[index].id;
    focus(rows[index].id);
  };
  const onKeyDown = (event) => {
    const index = rows.findIndex((row) => row.id !== undefined && row.id === focused);
    const next = index < 0 ? -1 : target(event.key, index, rows, Math.floor(view.height / view.row) - 1);
    if (next < 0) return;
    event.preventDefault();
    goTo(next);
  };
  const [first, end] = inSight(tops, rows.length, view);
  const drawn = rows.map((row, index) => ({ ...row, index })).slice(first, end);
  const away = focused === null ? -1 : rows.findIndex((row) => row.id === focused);
  if (away >= 0 && (away < first || away >= end)) drawn.push({ id: focused, index: away }); // it keeps the focus
  return html`<div class="card devices" ref=${frame} role="table" aria-label="Devices"
      aria-rowcount=${rows.length + 1} aria-colcount=${COLUMNS.length}
      onKeyDown=${onKeyDown} onfocusin=${(event) => focus(event.target.closest("[data-id]")?.dataset.id ?? null)}>
    <div role="rowgroup" class="head"><${Head} choice=${choice} change=${change} /></div>
    <div role="rowgroup" class="body" style=${{ height: `${total}px` }}>
      ${[...Map.groupBy(drawn, ({ index }) => Math.floor(index / BLOCK))].map(([block, some]) => html`<div key=${block} role="none">
        ${some.map(({ id, heading, level, index }) => {
          const place = { top: tops[index], number: index + 2 };
          if (id === undefined) return html`<${Heading} key=${`:${level}`} text=${heading} level=${level} ...${place} />`;
          const one = byId.get(id);
          const said = [one?.activity, ...(one?.concerns.map((concern) => concern.text) ?? [])].join();
          return one && html`<${DeviceRow} key=${id} one=${one} said=${said} device=${one.device}
            stages=${fleet.network_stages} second=${Math.floor(now + (index % TURNS) / TURNS)} open=${open} ...${place} />`;
        })}
      </div>`)}
    </div>
  </div>`;
}

/** Tracks which part of the list is in sight, and the height of its rows with this screen and font. */
function useSight(frame, look) {
  useLayoutEffect(() => {
    const area = frame.current;
    let isDue = false;
    const measure = () => {
      isDue = false;
      const [own, page] = [getComputedStyle(area), getComputedStyle(document.documentElement)];
      const pixels = (name) => parseFloat(own.getPropertyValue(name)) * parseFloat(page.fontSize); // it is in rem
      const [row, heading] = [pixels("--row"), pixels("--heading")];
      const seen = { top: area.scrollTop, height: area.clientHeight, row, heading };
      look((last) => (Object.keys(seen).every((name) => last[name] === seen[name]) ? last : seen));
    };
    const later = () => {
      if (!isDue) requestAnimationFrame(measure);
      isDue = true;
    };
    measure();
    area.addEventListener("scroll", later, { passive: true });
    const observer = new ResizeObserver(later);
    observer.observe(area);
    return () => {
      area.removeEventListener("scroll", later);
      observer.disconnect();
    };
  }, []);
}

/** Where each row begins, in pixels, and the height of all. */
function placed(rows, { row, heading }) {
  let total = 0;
  const tops = rows.map((one) => {
    const top = total;
    total += one.id === undefined ? heading : row;
    return top;
  });
  return { tops, total };
}

function inSight(tops, length, { top, height, row }) {
  let first = 0;
  let end = length;
  while (first < end) {
    const middle = (first + end) >> 1;
    if (tops[middle] < top) first = middle + 1;
    else end = middle;
  }
  const from = Math.max(first - 1 - BEYOND, 0);
  const to = Math.min(first + Math.ceil(height / row) + BEYOND, length);
  return [from - (from % BLOCK), Math.min(to + (BLOCK - 1) - ((to + BLOCK - 1) % BLOCK), length)];
}

/** The row that a key leads to; -1: it leads nowhere. */
function target(key, index, rows, page) {
  const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity };
  const step = steps[key];
  if (step === undefined) return -1;
  const bounded = Math.min(Math.max(index + step, 0), rows.length - 1);
  if (rows[bounded].id !== undefined) return bounded;
  const beyond = bounded + (step < 0 && bounded > 0 ? -1 : 1);
  return rows[beyond]?.id === undefined ? -1 : beyond;
}

function Head({ choice, change }) {
  const sort = (order) => {
    change({ order, direction: choice.order === order ? -choice.direction : ORDERS[order].first });
  };
  return html`<div role="row" class="row" aria-rowindex="1">
    ${COLUMNS.map(({ key, title, orders }) => {
      const chosen = orders.find((order) => order === choice.order);
      const sorted = choice.direction > 0 ? "ascending" : "descending";
      return html`<div key=${key} role="columnheader" class=${key} aria-sort=${chosen ? sorted : "none"}>
        <button type="button" onClick=${() => sort(chosen ?? orders[0])}>
          ${title}${chosen && html`<span aria-hidden="true">${choice.direction > 0 ? " ▲" : " ▼"}</span>`}
        </button>
      </div>`;
    })}
  </div>`;
}

function Heading({ text, level, top, number }) {
  return html`<div role="row" class="heading ${level}" aria-rowindex=${number} style=${{ transform: `translateY(${top}px)` }}>
    <div role="cell" aria-colspan=${COLUMNS.length}>${text}</div></div>`;
}
