// SPDX-License-Identifier: Apache-2.0
// The page of `splitee label`: what it shows, and what keys, clicks and other browsers change.

import { element, find } from "./elements.js";
import { showEnough } from "./enough.js";
import { Sending } from "./sending.js";
import { Tiles } from "./tiles.js";
import { count, several } from "/shared/words.js";

const KEYS = [..."123456789abcdefghijklmnopqrstuvwxyz"];
const AT_ONCE = 60; // images that are shown, and added
const BELOW = 30; // images from which on more are fetched
const AT_MOST = 1000; // of one action
const browser = crypto.getRandomValues(new Uint32Array(2)).join("-");

let state = { classes: [], none: 0, unlabelled: 0, unscored: 0, undoable: 0, model: "", data: "" };
let shown = AT_ONCE;
let fetching = false, again = false;
const leaving = new Set(); // identifiers of images whose label is on its way
const left = new Set(); // of removed images: an earlier list may still have them

const tiles = new Tiles(find("tiles"), find("to-label"), { changed: showCounts, open: showLarge, broken: showBroken });
const sending = new Sending((waiting) => trouble("connection", waiting && `The device does not reply: ${several(waiting, "action")} will be sent again.`));

// ---- words ----

const troubles = new Map();

function trouble(about, words) {
  if (words) troubles.set(about, words); else troubles.delete(about);
  const text = [...troubles.values()].join(" ");
  if (find("trouble").textContent !== text) find("trouble").textContent = text;
}

const say = (words) => { find("said").textContent = words; };

function showCounts() {
  const selected = tiles.selected.length;
  const labelled = state.classes.reduce((sum, one) => sum + one.images, 0);
  const facts = [several(state.unlabelled, "image to label", "images to label"), `${count(labelled)} labelled in ${state.data}`, state.model ? `guesses of ${state.model}` : "no model: no guesses"];
  if (state.unscored) facts.push(`${count(state.unscored)} not yet looked at by the model`);
  find("facts").replaceChildren(...facts.map((words) => element("li", {}, words)));
  find("to-label").textContent = selected ? `To label, ${selected} selected` : "To label";
  find("undo").disabled = !state.undoable && !sending.queue.length;
  find("more").hidden = !hasMore();
  find("nothing").hidden = tiles.all.length > 0;
  find("nothing").textContent = state.unlabelled ? "The images are on their way." : "Nothing is left to label.";
}

function showState(fresh) {
  state = fresh;
  const bar = find("classes");
  const names = JSON.stringify(state.classes.map((one) => one.name));
  if (bar.dataset.names !== names) {
    bar.dataset.names = names;
    bar.replaceChildren(...state.classes.map((one, at) => classButton(KEYS[at], one.shown, () => label(one.name))),
      classButton("0", "None of these", () => label(null)), classButton("+", "New class", openNewClass));
  }
  [...bar.children].forEach((button, at) => {
    const images = at < state.classes.length ? state.classes[at].images : at === state.classes.length ? state.none : null;
    button.lastChild.textContent = images === null ? "" : count(images);
  });
  showCounts();
}

function classButton(key, words, act) {
  const button = element("button", { type: "button", title: words, "aria-keyshortcuts": key }, ...(key ? [element("kbd", { "aria-hidden": "true" }, key)] : []), element("span", {}, words), element("small", {}));
  button.addEventListener("click", act);
  return button;
}

// ---- images ----

const hasMore = () => state.unlabelled > tiles.all.length + leaving.size;

async function fetchImages() {
  if (fetching) { again = true; return; }
  fetching = true;
  do {
    again = false;
    try {
      const wanted = shown + leaving.size;
      const response = await fetch(`/images?order=${find("order").value}&count=${wanted}`);
      if (response.status === 401) location.reload();
      if (response.ok) showImages((await response.json()).images);
    } catch { /* the stream of events says that the device is away */ }
  } while (again);
  fetching = false;
}

// Tiles never change their places under somebody's hand: new ones come last.
function showImages(images) {
  const isFirst = !tiles.all.length;
  images.forEach((image) => tiles.update(image));
  tiles.add(images.filter((image) => !left.has(image.id)).slice(0, shown));
  if (isFirst && [document.body, find("to-label")].includes(document.activeElement)) tiles.current?.focus({ preventScroll: true });
}

async function showBroken(id) {
  let words = "cannot be read";
  try {
    const response = await fetch(`/image/${id}/small`);
    if (response.ok) return;
    if (response.status === 404) {
      const tile = tiles.find(id);
      if (tile) { remove([tile]); say("An image is no longer there: it was taken out."); refill(); }
      return;
    }
    words = (await response.text()).trim() || words;
  } catch { return; }
  tiles.spoil(id);
  say(words);
}

function remove(some) {
  some.forEach((tile) => left.add(tile.image.id));
  tiles.remove(some);
}

function restore(images, before) {
  images.forEach((image) => left.delete(image.id));
  return tiles.add(images, before);
}

function refill() {
  if (tiles.all.length < Math.min(BELOW, shown) && hasMore()) fetchImages();
}

// ---- actions ----

async function label(name, meant = tiles.meant) {
  for (let start = 0; start < meant.length; start += AT_MOST) await labelSome(name, meant.slice(start, start + AT_MOST));
}

async function labelSome(name, meant) {
  const images = meant.map((tile) => tile.image);
  const before = meant.at(-1).nextSibling;
  const words = name === null ? "none of these" : state.classes.find((one) => one.name === name)?.shown ?? "";
  images.forEach((image) => leaving.add(image.id));
  remove(meant);
  nextLarge();
  say(`${several(images.length, "image")}: ${words}.`);
  refill();
  const reply = await sending.send("/label", { images: images.map((image) => image.id), label: name, browser });
  images.forEach((image) => leaving.delete(image.id));
  report(reply, name, words, images, before);
}

function report(reply, name, words, images, before) {
  const already = Object.values(reply.already ?? {}).filter((other) => other !== (name === null ? null : words));
  const done = new Set([...reply.images ?? [], ...reply.gone ?? [], ...Object.keys(reply.already ?? {})]);
  const back = images.filter((image) => !done.has(image.id));
  if (back.length) restore(back, before?.isConnected ? before : null);
  trouble("label", reply.failed && `${several(back.length, "image stays", "images stay")} where ${back.length === 1 ? "it was" : "they were"}: ${reply.failed}`);
  if (already.length) say(`${several(already.length, "image was", "images were")} labelled ${[...new Set(already.map((one) => one ?? "none of these"))].join(", ")} already, in another browser or before.`);
  else if (reply.gone?.length) say(`${several(reply.gone.length, "image is", "images are")} no longer there: taken out.`);
  if (reply.state) showState(reply.state);
  refill();
}

function labelAsGuessed() {
  const known = new Set(state.classes.map((one) => one.name)), groups = new Map();
  for (const tile of tiles.meant) {
    const guess = tile.image.guesses[0]?.label;
    if (known.has(guess)) groups.set(guess, [...groups.get(guess) ?? [], tile]);
  }
  if (!groups.size) say("There is no guess of a class that there is.");
  for (const [name, some] of groups) label(name, some);
}

async function undo() {
  const reply = await sending.send("/undo", { browser });
  trouble("label", reply.failed && reply.failed !== "nothing to undo" && `Not undone: ${reply.failed}`);
  if (reply.failed === "nothing to undo") say("There is nothing to undo.");
  else undone(reply, "");
  if (reply.state) showState(reply.state);
}

function undone(reply, where) {
  const [first] = restore(reply.restored ?? [], tiles.box.firstChild);
  const words = reply.label === null ? "none of these" : reply.shown;
  say(`Undone${where}: ${several(reply.images?.length ?? 0, "image")} of ${words}${reply.gone?.length ? `; ${several(reply.gone.length, "image is", "images are")} no longer there` : ""}.`);
  if (first && !where) { tiles.setCurrent(first); if (!find("large").open) first.focus(); }
}

// ---- dialogs ----

const largeIsOpen = () => find("large").open;

function showLarge(tile) {
  if (!tile) return;
  find("large-image").src = `/image/${tile.image.id}/large`;
  find("large-image").alt = tile.getAttribute("aria-label");
  find("large-name").textContent = tile.getAttribute("aria-label");
  if (!largeIsOpen()) find("large").showModal();
}

function nextLarge() {
  if (!largeIsOpen()) return;
  if (tiles.current) showLarge(tiles.current); else find("large").close();
}

function openNewClass() {
  const dialog = find("new-class");
  dialog.querySelector("input").value = "";
  dialog.querySelector(".line").textContent = "";
  dialog.showModal();
}

async function makeClass(event) {
  event.preventDefault();
  const dialog = find("new-class"), name = dialog.querySelector("input").value.trim();
  const reply = await sending.send("/classes", { name });
  dialog.querySelector(".line").textContent = reply.failed ?? "";
  if (reply.failed) return;
  showState(reply.state);
  dialog.close();
  say(`There is a new class: ${reply.shown}.`);
}

async function measure() {
  const button = find("measure");
  button.disabled = true;
  button.textContent = "Measuring";
  try {
    const response = await fetch("/enough");
    const found = await response.json();
    if (response.ok) showEnough(find("enough"), found);
    else find("enough").replaceChildren(element("p", {}, found.failed));
  } catch {
    find("enough").replaceChildren(element("p", {}, "The device does not reply."));
  }
  button.disabled = false;
  button.textContent = "Measure again";
}

// ---- keys ----

const OTHERS = {
  "0": () => label(null),
  ".": labelAsGuessed,
  "+": openNewClass,
  "?": () => find("keys").showModal(),
  Backspace: undo,
};

function onKey(event) {
  if (event.altKey || event.target.matches("input, select") || find("new-class").open || find("keys").open) return;
  if (act(event, event.key.length === 1 ? event.key.toLowerCase() : event.key)) event.preventDefault();
}

// True if the key was one of the page's.
function act(event, key) {
  if (event.ctrlKey || event.metaKey) {
    if (key === "z") undo();
    else if (key === "a" && !largeIsOpen()) tiles.select(tiles.all);
    else return false;
    return true;
  }
  const one = state.classes[KEYS.indexOf(key)];
  const meant = largeIsOpen() && tiles.current ? [tiles.current] : tiles.meant;
  if (KEYS.includes(key)) { if (one && meant.length) label(one.name, meant); return true; }
  if (key === "0" && largeIsOpen()) { label(null, meant); return true; }
  if (key in OTHERS) { OTHERS[key](); return true; }
  if (largeIsOpen()) return moveLarge(event);
  if (key === "Escape") { tiles.select(tiles.selected, false); return true; }
  if (event.target.closest("button, a, summary")) return false;
  if (key === " ") { tiles.toggle(); return true; }
  if (key === "Enter") { showLarge(tiles.current); return true; }
  return tiles.move(event.key, event.shiftKey);
}

function moveLarge(event) {
  const to = { ArrowRight: "nextSibling", ArrowLeft: "previousSibling" }[event.key];
  if (!to) return false;
  const tile = tiles.current?.[to];
  if (tile) { tiles.setCurrent(tile); showLarge(tile); }
  return true;
}

// ---- what other browsers and the folders change ----

function listen() {
  const events = new EventSource("/events");
  const on = (name, take) => events.addEventListener(name, (event) => take(JSON.parse(event.data)));
  events.addEventListener("open", () => { trouble("connection", ""); fetchImages(); });
  events.addEventListener("error", () => {
    trouble("connection", "The device does not reply; what you label is kept here until it does.");
    if (events.readyState === EventSource.CLOSED) { events.close(); setTimeout(listen, 1000); }
  });
  on("state", showState);
  on("labelled", (change) => {
    if (change.browser === browser) return;
    takeOut(change.images, `labelled ${change.label === null ? "none of these" : change.shown} in another browser`);
    changeOf(change);
  });
  on("undone", (change) => {
    if (change.browser !== browser) undone(change, " in another browser");
    changeOf(change);
  });
  on("folders", (change) => {
    takeOut(change.gone, "no longer there");
    showState(change.state);
    fetchImages();
  });
}

function changeOf(change) {
  takeOut(change.gone, "no longer there");
  showState(change.state);
  refill();
}

function takeOut(ids, why) {
  const gone = ids.map((id) => tiles.find(id)).filter(Boolean);
  if (!gone.length) return;
  remove(gone);
  nextLarge();
  say(`${several(gone.length, "image was", "images were")} ${why}: taken out.`);
}

find("undo").addEventListener("click", undo);
find("all").addEventListener("click", () => tiles.select(tiles.all));
find("measure").addEventListener("click", measure);
find("keys-button").addEventListener("click", OTHERS["?"]);
find("more").addEventListener("click", () => { shown = tiles.all.length + AT_ONCE; fetchImages(); });
find("order").addEventListener("change", () => { shown = AT_ONCE; tiles.clear(); fetchImages(); });
find("new-class").querySelector("form").addEventListener("submit", makeClass);
find("large").addEventListener("close", () => tiles.current?.focus());
for (const button of document.querySelectorAll("[data-close]")) button.addEventListener("click", () => button.closest("dialog").close());
addEventListener("beforeunload", (event) => { if (sending.queue.length) event.preventDefault(); }); // labels wait
document.addEventListener("keydown", onKey);
listen();
