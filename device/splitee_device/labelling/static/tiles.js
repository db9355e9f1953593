// SPDX-License-Identifier: Apache-2.0
// The grid of images: a list box with one current image and any number of selected ones.

import { element } from "./elements.js";
import { wholePercent } from "/shared/words.js";

export class Tiles {
  // `box`: the list box; `instead`: what gets the focus when it is empty; `broken(id)`: an image did not load.
  constructor(box, instead, { changed, open, broken }) {
    Object.assign(this, { box, instead, changed, broken, current: null, anchor: null });
    box.addEventListener("click", (event) => this.click(event));
    box.addEventListener("dblclick", (event) => event.target.closest(".tile") && open(event.target.closest(".tile")));
    box.addEventListener("focusin", (event) => this.setCurrent(event.target.closest(".tile")));
  }

  get all() { return [...this.box.children]; }
  get selected() { return this.all.filter(isSelected); }
  // What an action applies to: the selected images, else the current one.
  get meant() {
    const selected = this.selected;
    return selected.length || !this.current ? selected : [this.current];
  }

  has(id) { return this.find(id) !== null; }
  find(id) { return this.box.querySelector(`[data-id="${CSS.escape(id)}"]`); }

  // At the end, or before the tile `before`.
  add(images, before = null) {
    const fresh = images.filter((image) => !this.has(image.id)).map((image) => this.make(image));
    for (const tile of fresh) this.box.insertBefore(tile, before);
    if (!this.current && this.box.firstChild) this.setCurrent(this.box.firstChild);
    this.changed();
    return fresh;
  }

  // Shows what a model has computed since the tile was made.
  update(image) {
    const tile = this.find(image.id);
    if (!tile || JSON.stringify(tile.image) === JSON.stringify(image)) return;
    tile.image = image;
    describe(tile, this.broken);
  }

  // Marks an image whose file turned out to hold none.
  spoil(id) {
    const tile = this.find(id);
    if (tile) this.update({ ...tile.image, readable: false });
  }

  // The next tile that stays becomes the current one, and has the focus if a removed one had it.
  remove(tiles) {
    const leaving = new Set(tiles);
    if (!leaving.size) return;
    const hadFocus = leaving.has(document.activeElement);
    if (leaving.has(this.current)) this.setCurrent(this.heir(leaving));
    if (leaving.has(this.anchor)) this.anchor = this.current;
    for (const tile of leaving) tile.remove();
    if (hadFocus) (this.current ?? this.instead).focus();
    this.changed();
  }

  heir(leaving) {
    const all = this.all, at = all.indexOf(this.current);
    const stays = (tile) => !leaving.has(tile);
    return all.slice(at).find(stays) ?? all.slice(0, at).reverse().find(stays) ?? null;
  }

  clear() {
    this.box.replaceChildren();
    this.current = this.anchor = null;
    this.changed();
  }

  setCurrent(tile) {
    if (this.current === tile) return;
    if (this.current) { this.current.tabIndex = -1; this.current.classList.remove("current"); }
    this.current = tile;
    if (tile) { tile.tabIndex = 0; tile.classList.add("current"); }
  }

  select(tiles, on = true) {
    for (const tile of tiles) tile.setAttribute("aria-selected", on);
    this.changed();
  }

  click(event) {
    const tile = event.target.closest(".tile");
    if (!tile) return;
    if (event.shiftKey && this.anchor) this.select(this.between(this.anchor, tile));
    else this.select([tile], !isSelected(tile));
    this.anchor = tile;
    tile.focus();
  }

  toggle() {
    if (!this.current) return;
    this.select([this.current], !isSelected(this.current));
    this.anchor = this.current;
  }

  // True if the key was one that moves.
  move(key, extends_) {
    const all = this.all, at = all.indexOf(this.current), columns = this.columns(all);
    const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns, Home: -at, End: all.length - 1 - at };
    if (!(key in steps) || at < 0) return false;
    const to = all[at + steps[key]];
    if (!to) return true;
    if (extends_) {
      this.anchor ??= this.current;
      this.select(this.between(this.current, to));
    }
    to.focus();
    return true;
  }

  columns(all) {
    const top = all[0]?.offsetTop;
    return Math.max(all.findIndex((tile) => tile.offsetTop !== top), 0) || all.length;
  }

  between(one, other) {
    const all = this.all, places = [all.indexOf(one), all.indexOf(other)];
    return all.slice(Math.min(...places), Math.max(...places) + 1);
  }

  make(image) {
    const tile = element("div", { class: "tile", role: "option", "aria-selected": "false", tabindex: "-1", "data-id": image.id });
    tile.image = image;
    describe(tile, this.broken);
    return tile;
  }
}

const isSelected = (tile) => tile.getAttribute("aria-selected") === "true";

function describe(tile, broken) {
  const { id, name, readable, guesses, entropy, kept } = tile.image;
  tile.title = name;
  if (!readable) {
    const words = `cannot be read: ${name}`;
    tile.setAttribute("aria-label", words);
    tile.replaceChildren(element("div", { class: "unreadable" }, words));
    return;
  }
  const [first, ...others] = guesses.map(({ shown, probability }) => `${shown} ${wholePercent(probability)}`);
  const second = [entropy === null ? "" : `uncertainty ${entropy.toFixed(2)} of 1`, others.join(", ")];
  if (kept) second.push(`when kept: ${kept}`);
  const details = second.filter(Boolean).join("; ");
  tile.setAttribute("aria-label", [first ? `guess ${first}` : "no guess", details, `file ${name}`].filter(Boolean).join("; "));
  tile.replaceChildren(thumbnail(id, broken), element("p", { class: "guess" }, first ?? name));
  if (details) tile.append(element("p", { class: "other" }, details));
}

function thumbnail(id, broken) {
  const shown = element("img", { src: `/image/${id}/small`, alt: "", loading: "lazy", draggable: "false" });
  shown.addEventListener("error", () => broken(id));
  return shown;
}
