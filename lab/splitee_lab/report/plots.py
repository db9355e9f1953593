# SPDX-License-Identifier: Apache-2.0
"""The report's plots: inline SVG by matplotlib, with the page's colours and fonts."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import mean
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from splitee.cli.words import from_to

WIDTH = 5.2  # inches; one inch is 72 units of the SVG
ROW = 0.2  # inches, a bar with its gap
MANY = 6  # lines; with more, a label stands for a cut, not for a device
OVERLAP = 0.005  # of an axis: closer lines (half of their own width) look like one
MARGIN = 0.08  # of the lines' span, above and below them
STRETCH = 1.8  # times the axis of the later rounds: a first round that needs more lies outside
LEAST_ROUNDS = 4  # of which the first may lie outside
LONGEST = 18  # characters of a label beside a plot

# Stand-ins that the page's style replaces; Okabe & Ito's colours, readable with any colour vision.
INK, MUTED, RULE, PAPER = "#010203", "#010204", "#010205", "#010206"
SERIES = tuple(f"#0101{index:02x}" for index in range(6))
_VARIABLES = {INK: "--ink", MUTED: "--muted", RULE: "--rule", PAPER: "--card"} | {
    colour: f"--series-{index}" for index, colour in enumerate(SERIES)
}
HOLLOW = 0.5  # strength up to which a dot is drawn hollow
DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1.5)), (0, (5, 1.5, 1.5, 1.5)))

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "splitee",
    "text.parse_math": False,
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "lines.linewidth": 2,
    "lines.markersize": 4.5,
}


@dataclass(frozen=True)
class Line:
    """One device over the rounds: `values` by round; a round without one is left out."""

    label: str
    cut: int
    values: Mapping[int, float]


@dataclass(frozen=True)
class Curve:
    """A share over a growing quantity, `points` as (x, y)."""

    label: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Bar:
    """A named value; `strength` 0..1 is how strongly it is filled, None is grey."""

    label: str
    value: float
    strength: float | None = 1.0


@dataclass(frozen=True)
class Group:
    """Bars under one heading, in the colour of a cut."""

    heading: str
    cut: int
    bars: Sequence[Bar]


@dataclass(frozen=True)
class Colours:
    """One colour per cut, from the shallowest."""

    cuts: Sequence[int]
    of: Mapping[int, str] = field(init=False)

    def __post_init__(self) -> None:
        order = {cut: SERIES[index % len(SERIES)] for index, cut in enumerate(sorted(set(self.cuts)))}
        object.__setattr__(self, "of", order)


def over_rounds(
    key: str, lines: Sequence[Line], references: Mapping[str, float], colours: Colours, *, share: bool
) -> str:
    """Lines over the rounds, each with its label at its end; those that coincide are drawn as one.

    The axis covers only the range of the lines. If the first round, of hardly trained networks, would stretch
    it, this round lies outside, and its values are printed instead.

    Args:
        key: prefix of the SVG's ids.
        references: levels to compare with, drawn dashed across.
        share: values are fractions and shown in per cent.
    """

    def draw(axes: Axes) -> None:
        low, high, outside = _limits(lines, references.values())
        labels: list[tuple[float, str, str]] = []
        seen: dict[int, int] = {}
        for same in _coincident(lines, OVERLAP * (high - low)):
            line = same[0]
            colour = colours.of[line.cut] if len({one.cut for one in same}) == 1 else INK
            style: dict[str, Any] = {"linewidth": 1.2, "alpha": 0.7}
            if len(lines) <= MANY or len(same) == len(lines):
                style = {"marker": "o", "linestyle": DASHES[seen.get(line.cut, 0) % len(DASHES)]}
                seen[line.cut] = seen.get(line.cut, 0) + 1
            rounds = sorted(line.values)
            axes.plot(rounds, [line.values[at] for at in rounds], color=colour, **style)
            labels.append((line.values[rounds[-1]], _names(same, len(lines)), colour))
        if len(lines) > MANY and len(labels) > 1:
            labels = _label_each_cut(lines, colours)
        for name, level in references.items():
            axes.axhline(level, color=MUTED, linewidth=1.2, linestyle=(0, (3, 2)), zorder=1)
            labels.append((level, f"{name} {100 * level:.1f} %" if share else name, MUTED))
        axes.set_xlabel("round")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, min_n_ticks=1))
        axes.grid(visible=False, axis="x")
        axes.margins(x=0.03)
        axes.set_ylim(low, high)
        if share:
            axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=None, symbol=" %"))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=6))
        if outside:
            first = min(min(line.values) for line in lines)
            values = from_to(outside, lambda value: f"{100 * value:.0f}" if share else f"{value:.2f}")
            _annotate_outside(axes, f"round {first}: {values}{' %' * share}", below=max(outside) < low)
        _label_ends(axes, labels)

    return svg(key, 3.1, (0.12, 0.15, 0.6, 0.81), draw)


def _limits(lines: Sequence[Line], references: Iterable[float]) -> tuple[float, float, list[float]]:
    """The limits of the axis, with a margin; and the first round's values if they lie outside."""
    first = min(min(line.values) for line in lines)
    later = [value for line in lines for at, value in line.values.items() if at > first]
    early = [line.values[first] for line in lines if first in line.values]
    known = [*later, *references]
    if not later or len({at for line in lines for at in line.values}) < LEAST_ROUNDS:
        return *_padded([*known, *early]), []
    low, high = _padded(known)
    whole_low, whole_high = _padded([*known, *early])
    outside = whole_high - whole_low > STRETCH * (high - low) and not any(
        low <= value <= high for value in early
    )
    return (low, high, early) if outside else (whole_low, whole_high, [])


def _padded(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    margin = MARGIN * (high - low) or 0.05 * abs(high) or 0.01
    return low - margin, high + margin


def _coincident(lines: Sequence[Line], tolerance: float) -> list[list[Line]]:
    """Groups of lines that look the same: nowhere further than `tolerance` from the first of them."""
    groups: list[list[Line]] = []
    for line in lines:
        for group in groups:
            values = group[0].values
            if values.keys() == line.values.keys() and all(
                abs(values[at] - line.values[at]) <= tolerance for at in values
            ):
                group.append(line)
                break
        else:
            groups.append([line])
    return groups


def _names(same: Sequence[Line], total: int) -> str:
    """A line's label: "pi-1, cut 3", "all 3 devices", "pi-1 and pi-3", "4 devices"."""
    if len(same) == 1:
        cut = f", cut {same[0].cut}"
        return f"{shortened(same[0].label, LONGEST - len(cut))}{cut}"
    if len(same) == total:
        return f"all {total} devices"
    names = " and ".join(line.label for line in same)
    return names if len(names) <= LONGEST else f"{len(same)} devices"


def _annotate_outside(axes: Axes, text: str, *, below: bool) -> None:
    """Print the first round's values at the edge of the axes beyond which they lie."""
    height, side = (0.03, "bottom") if below else (0.97, "top")
    axes.text(0.35, height, text, transform=axes.transAxes, va=side, color=MUTED, size=9)


def curves(key: str, lines: Sequence[Curve], x_label: str) -> str:
    """Shares over x, each in its own colour and with a label at its end; a single point is a dot."""

    def draw(axes: Axes) -> None:
        labels = []
        for index, line in enumerate(lines):
            colour = SERIES[index % len(SERIES)]
            xs, ys = zip(*line.points, strict=True)
            axes.plot(xs, ys, color=colour, marker="o", linestyle=DASHES[index // len(SERIES) % len(DASHES)])
            labels.append((ys[-1], line.label, colour))
        axes.set_xlabel(x_label)
        are_whole = all(float(x).is_integer() for line in lines for x, _ in line.points)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, min_n_ticks=1, integer=are_whole))
        axes.margins(x=0.03, y=0.08)
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=None, symbol=" %"))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=6))
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, 0), min(high, 1.005))
        _label_ends(axes, labels)

    return svg(key, 3.1, (0.105, 0.15, 0.625, 0.81), draw)


def bars(
    key: str, groups: Sequence[Group], colours: Colours, shown: Callable[[float], str], top: float
) -> str:
    """Horizontal bars in groups from 0 to `top`; each has its name before it and its value after it."""
    rows = sum(len(group.bars) + (1.3 if group.heading else 0) for group in groups)

    def draw(axes: Axes) -> None:
        at = 0.0
        for group in groups:
            if group.heading:
                axes.text(0, at + 0.05, shortened(group.heading, 40), va="center", weight="bold")
                at += 1.0
            for bar in group.bars:
                colour = MUTED if bar.strength is None else colours.of[group.cut]
                alpha = 0.45 if bar.strength is None else bar.strength
                axes.barh(at, bar.value, height=0.72, color=colour, alpha=alpha, linewidth=0)
                axes.text(-0.015 * top, at, shortened(bar.label, 14), va="center", ha="right", color=INK)
                axes.text(bar.value + 0.012 * top, at, shown(bar.value), va="center", color=INK)
                at += 1.0
            at += 0.3 if group.heading else 0
        axes.set_ylim(at - 0.3, -0.7)
        axes.set_xlim(0, top)
        axes.set_yticks([])
        axes.spines["bottom"].set_visible(False)
        axes.set_xticks([])

    height = max(rows, 1) * ROW + 0.1
    return svg(key, height, (0.22, 0.01, 0.64, 0.98), draw)


def dots(key: str, groups: Sequence[Group], colours: Colours, shown: Callable[[float], str]) -> str:
    """Values as dots in groups, on an axis that covers only their range, each with its name and value."""
    values = [bar.value for group in groups for bar in group.bars]
    rows = sum(len(group.bars) + 1.3 for group in groups)

    def draw(axes: Axes) -> None:
        low, high = _padded(values)
        span = high - low
        at = 0.0
        for group in groups:
            axes.text(low, at + 0.05, shortened(group.heading, 40), va="center", weight="bold")
            at += 1.0
            for bar in group.bars:
                colour = MUTED if bar.strength is None else colours.of[group.cut]
                axes.hlines(at, low, high, color=RULE, linewidth=0.8)
                filled = bar.strength is not None and bar.strength > HOLLOW
                fill: dict[str, Any] = {"markerfacecolor": colour if filled else PAPER}
                axes.plot(bar.value, at, "o", color=colour, markersize=6, markeredgewidth=1.6, **fill)
                axes.text(low - 0.02 * span, at, shortened(bar.label, 14), va="center", ha="right", color=INK)
                axes.text(high + 0.02 * span, at, shown(bar.value), va="center", color=INK)
                at += 1.0
            at += 0.3
        axes.set_ylim(at - 0.3, -0.7)
        axes.set_xlim(low, high)
        axes.set_yticks([])
        axes.spines["bottom"].set_visible(False)
        axes.set_xticks([])

    return svg(key, max(rows, 1) * ROW + 0.1, (0.2, 0.01, 0.66, 0.98), draw)


def _label_each_cut(lines: Sequence[Line], colours: Colours) -> list[tuple[float, str, str]]:
    labels = []
    for cut in sorted({line.cut for line in lines}):
        ends = [line.values[max(line.values)] for line in lines if line.cut == cut]
        labels.append((mean(ends), f"cut {cut}, {len(ends)} devices", colours.of[cut]))
    return labels


def _label_ends(axes: Axes, labels: Sequence[tuple[float, str, str]]) -> None:
    """Labels right of the axes at their values' height, moved apart if they would touch."""
    low, high = axes.get_ylim()
    ordered = sorted(labels)
    wanted = [(value - low) / (high - low) for value, _, _ in ordered]
    for height, (_, text, colour) in zip(spread(wanted, 0.068), ordered, strict=True):
        axes.text(1.02, height, text, transform=axes.transAxes, va="center", color=colour, clip_on=False)


def spread(wanted: Sequence[float], gap: float) -> list[float]:
    """Positions near `wanted` (ascending) that are at least `gap` apart, and at most 1."""
    placed: list[float] = []
    for position in wanted:
        placed.append(max(position, placed[-1] + gap) if placed else position)
    ceiling = 1.0
    for index in reversed(range(len(placed))):
        placed[index] = min(placed[index], ceiling)
        ceiling = placed[index] - gap
    return placed


def shortened(text: str, length: int = 16) -> str:
    """`text`, or its beginning with a mark that it is shortened."""
    return text if len(text) <= length else text[: length - 1] + "…"


def svg(
    key: str,
    height: float,
    place: tuple[float, float, float, float],
    draw: Callable[[Axes], None],
    width: float = WIDTH,
) -> str:
    """The drawing of `draw` as an SVG element whose ids begin with `key` and whose size the page chooses.

    Args:
        height: of the drawing, and `width`: in inches.
        place: of the axes in it, as shares: left, bottom, width, height.
    """
    buffer = io.StringIO()
    with rc_context(_STYLE):
        figure = Figure(figsize=(width, height))
        draw(figure.add_axes(place))
        figure.savefig(
            buffer,
            format="svg",
            transparent=True,
            metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")),
        )
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    opening = rf'<svg \1 role="img" aria-label="{key.replace("_", " ")}">'
    svg = re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', opening, svg, count=1)
    svg = re.sub(r"\s*<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{key}-", svg).replace("xlink:href", "href")
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", svg, count=1, flags=re.DOTALL)
    svg = re.sub(r'font-family: [^;"]*; ?', "", svg)
    return re.sub("#0101[0-9a-f]{2}|#01020[3456]", lambda found: f"var({_VARIABLES[found[0]]})", svg)
