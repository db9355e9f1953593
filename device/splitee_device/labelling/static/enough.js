// SPDX-License-Identifier: Apache-2.0
// Whether the labels are enough: the learning curve as a drawing, and the classes as a table.

import { drawing, element } from "./elements.js";
import { wholePercent } from "/shared/words.js";

const WIDTH = 640, HEIGHT = 280, LEFT = 48, RIGHT = 110, TOP = 12, BOTTOM = 48; // pixels
const tenths = (share) => (Math.round(1000 * share) / 10 || 0).toFixed(1); // || 0: no -0
const range = ({ low, high }, words) => `${words(low)} to ${words(high)}`;

export function showEnough(box, found) {
  const shown = [element("p", { class: "strong" }, found.verdict), element("p", {}, found.advice)];
  if (!found.model) shown.push(element("p", { class: "quiet" }, "From pixels alone: with a model the curve is that of its network."));
  const details = element("details", {}, element("summary", {}, "Learning curve, and each class"));
  if (found.curve.length > 1) details.append(plotCard(found));
  if (found.classes.length) details.append(table(found));
  box.replaceChildren(...shown, details);
}

function plotCard(found) {
  const holder = element("div");
  const select = element("select", {}, element("option", { value: "-1" }, "all classes"));
  found.classes.forEach((one, at) => {
    if (one.recall) select.append(element("option", { value: at }, one.name));
  });
  const draw = () => holder.replaceChildren(plot(found, Number(select.value)));
  select.addEventListener("change", draw);
  draw();
  const words = "Accuracy on held-out labelled images. The band holds 95 % of single divisions into fitted and held-out images.";
  return element("figure", { class: "card" },
    element("figcaption", {}, element("p", {}, words)),
    element("p", {}, element("label", {}, "Show the recall of ", select)), holder);
}

function plot({ curve, classes }, which) {
  const width = Math.min(WIDTH, innerWidth - 70);
  const counts = curve.map((point) => point.images);
  const [least, most] = [counts[0], counts.at(-1)].map(Math.log);
  const x = (images) => LEFT + (width - LEFT - RIGHT) * (Math.log(images) - least) / (most - least || 1);
  const y = (share) => TOP + (HEIGHT - TOP - BOTTOM) * (1 - Math.min(Math.max(share, 0), 1));
  const line = (value) => curve.map((point) => `${x(point.images)},${y(value(point))}`).join(" ");
  const band = `${line((point) => point.accuracy.high)} ${[...curve].reverse().map((point) => `${x(point.images)},${y(point.accuracy.low)}`).join(" ")}`;
  const last = curve.at(-1);
  const name = `Accuracy ${wholePercent(curve[0].accuracy.mean)} with ${counts[0]} labels, ${wholePercent(last.accuracy.mean)} with ${last.images}`;
  const drawn = drawing("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, class: "plot", role: "img", "aria-label": name });
  for (const share of [0, 0.25, 0.5, 0.75, 1]) {
    drawn.append(drawing("line", { class: "axis", x1: LEFT, x2: width - RIGHT, y1: y(share), y2: y(share) }),
      drawing("text", { x: LEFT - 8, y: y(share) + 4, "text-anchor": "end" }, wholePercent(share)));
  }
  for (const images of [counts[0], counts[counts.length >> 1], last.images]) {
    drawn.append(drawing("text", { x: x(images), y: HEIGHT - BOTTOM + 20, "text-anchor": "middle" }, String(images)));
  }
  drawn.append(drawing("text", { x: (LEFT + width - RIGHT) / 2, y: HEIGHT - 4, "text-anchor": "middle" }, "labels that the exit is fitted on"),
    drawing("polygon", { class: "band", points: band }),
    drawing("polyline", { class: "mean", points: line((point) => point.accuracy.mean) }),
    ...curve.map((point) => drawing("circle", { class: "dot", cx: x(point.images), cy: y(point.accuracy.mean), r: 3.5 })),
    drawing("text", { x: width - RIGHT + 10, y: y(last.accuracy.mean) + 4 }, "all classes"));
  if (which >= 0) drawClass(drawn, line, y, last, classes[which].name, which, width - RIGHT + 10);
  return drawn;
}

function drawClass(drawn, line, y, last, name, which, x) {
  const isNear = Math.abs(y(last.by_class[which]) - y(last.accuracy.mean)) < 16;
  const shown = name.length > 14 ? `${name.slice(0, 13)}…` : name;
  drawn.append(drawing("polyline", { class: "class", points: line((point) => point.by_class[which]) }),
    drawing("text", { class: "class-name", x, y: y(last.by_class[which]) + (isNear ? 20 : 4) }, shown));
}

function table(found) {
  const short = ["Labelled images", "Recall", `${found.next} more would add`];
  const headings = ["Class", "Labelled images", "Recall", `${found.next} more would add to the mean recall`];
  const head = element("tr", {}, ...headings.map((words, at) => element("th", { scope: "col", class: at ? null : "name" }, words)));
  const rows = found.classes.map((one) => {
    const cells = [String(one.images), one.recall ? wholePercent(one.recall.mean) : "too few to tell", one.gain ? `${tenths(one.gain.mean)} points` : "not estimated"];
    const notes = [null, one.recall && range(one.recall, wholePercent), one.gain && range(one.gain, tenths)];
    const made = cells.map((words, at) => element("td", { "data-label": short[at] }, words, ...(notes[at] ? [element("small", {}, notes[at])] : [])));
    return element("tr", {}, element("th", { scope: "row", class: "name" }, one.name), ...made);
  });
  return element("div", { class: "card table" }, element("table", {}, element("thead", {}, head), element("tbody", {}, ...rows)));
}
