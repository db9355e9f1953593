"""The figures at the head of a demo's page: what joining gains, or else what was reached."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import mean

from splitee.cli.words import from_to, images, percent, size, span
from splitee_lab.report.demo_report import Report
from splitee_lab.report.gains import (
    Comparison,
    adaptive_over_alone,
    exit_over_alone_exit,
    points,
    signed,
    trunk_against_centralized,
)


@dataclass(frozen=True)
class Card:
    """A figure with its title above it, and what it rests on below."""

    title: str
    value: str
    text: str


def cards(report: Report) -> Iterator[Card]:
    """In the order of the page."""
    for title, found, figure in (
        ("Adaptive over alone", adaptive_over_alone(report), "adaptive"),
        ("Exit over alone-exit", exit_over_alone_exit(report), "exit"),
        ("Trunk against centralized", trunk_against_centralized(report), "trunk"),
    ):
        yield from [_gain(title, found)] if found is not None else _level(report, figure)
    if shares := report.compute_share.values():
        value = from_to(shares, lambda share: f"{100 * share:.0f}")
        yield Card("Compute", f"{value} %", "of training the whole network, by device")
    trained = f"{report.batches_trained:,} of {report.batches_published:,} batches trained"
    yield Card("Sent by the devices", size(report.bytes_published), trained)
    yield Card("Time", span(report.seconds), "for the fleet, without the baselines")


def _gain(title: str, found: Comparison) -> Card:
    each = from_to(found.points.values(), signed)
    by_device = f"{each} by device; " if len(found.points) > 1 else ""
    return Card(
        title, f"{signed(points(found.mean_reached, found.mean_baseline))} points", by_device + found.levels
    )


def _level(report: Report, figure: str) -> Iterator[Card]:
    """Nothing where no device has been evaluated."""
    values = [getattr(device, f"{figure}_accuracy") for device in report.devices]
    known = [value for value in values if value is not None]
    if not known:
        return
    of_fleet = getattr(report.fleet, f"{figure}_accuracy")
    held_out = f"; {images(report.fleet.images)} held out" if report.fleet.images else ""
    yield Card(
        f"{figure.capitalize()} accuracy",
        percent(mean(known) if of_fleet is None else of_fleet),
        f"{from_to(known, lambda share: f'{100 * share:.1f}')} % by device{held_out}",
    )
