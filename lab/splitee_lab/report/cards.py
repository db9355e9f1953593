# SPDX-License-Identifier: Apache-2.0
"""The figures at the head of a demo's page: what was reached, what joining gains, and what it costs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from splitee.cli.words import MIB, from_to, images, megabytes, percent
from splitee_lab.report.demo_report import Report
from splitee_lab.report.figures import Figures, average, figures
from splitee_lab.report.gains import (
    Comparison,
    adaptive_over_alone,
    adaptive_over_alone_exit,
    exit_over_alone_exit,
    points,
    signed,
    trunk_against_centralized,
    trunk_over_alone,
)
from splitee_lab.report.traffic import COUNTED, total

GAINS: tuple[tuple[str, Callable[[Report], Comparison | None]], ...] = (
    ("Adaptive over alone", adaptive_over_alone),
    ("Adaptive over alone-exit", adaptive_over_alone_exit),
    ("Exit over alone-exit", exit_over_alone_exit),
    ("Trunk over alone", trunk_over_alone),
    ("Trunk against centralized", trunk_against_centralized),
)
LEVELS: tuple[tuple[str, Callable[[Figures], float | None]], ...] = (
    ("Adaptive", lambda found: found.adaptive),
    ("Exit", lambda found: found.exit),
    ("Trunk", lambda found: found.trunk),
    ("Offloaded", lambda found: found.offload),
)


@dataclass(frozen=True)
class Card:
    """A figure with its title above it, and its basis below."""

    title: str
    value: str
    text: str


def cards(report: Report) -> Iterator[Card]:
    """What joining gains, if that is known, and what it costs; in the order of the page."""
    for title, compare in GAINS:
        if (found := compare(report)) is not None:
            yield _gain(title, found)
    if shares := report.compute_share.values():
        value = from_to(shares, lambda share: f"{100 * share:.0f}")
        yield Card("Compute", f"{value} %", "of training the whole network, by device")
    if peaks := report.peak_memory.values():
        value = from_to(peaks, lambda peak: f"{peak / MIB:,.0f}")
        yield Card("Memory", f"{value} MiB", "at the peak of the device's process, by device")
    sent = from_to((total(device) for device in report.devices), megabytes)
    yield Card("Sent", f"{sent} MB", f"by device: {COUNTED}")


def _gain(title: str, found: Comparison) -> Card:
    each = from_to(found.points.values(), signed)
    by_device = f"{each} by device; " if len(found.points) > 1 else ""
    return Card(
        title, f"{signed(points(found.mean_reached, found.mean_baseline))} points", by_device + found.levels
    )


def levels(report: Report) -> Iterator[Card]:
    """The fleet's accuracies, which come first; none if no device has been evaluated."""
    shown = figures(report).values()
    for name, figure in LEVELS:
        known = [value for found in shown if (value := figure(found)) is not None]
        mean = average(known)
        if mean is not None:
            held_out = min(found.images for found in shown)
            rests_on = f"; {images(held_out)} held out" if held_out else ""
            each = from_to(known, lambda share: f"{100 * share:.1f}")
            title = f"{name} images" if name == "Offloaded" else f"{name} accuracy"
            by_device = f"{each} % by device" if len(known) > 1 else "of one device"
            yield Card(title, percent(mean), by_device + rests_on)
