# SPDX-License-Identifier: Apache-2.0
"""Accuracy over the rounds, as curves of bounded length for viewers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

import msgspec

from splitee.protocol.fleet import DeviceMetrics, Metrics
from splitee.protocol.overview import (
    MOST_CURVES,
    MOST_POINTS,
    Baselines,
    DeviceHistory,
    DevicePoint,
    History,
    HistoryPoint,
)

T = TypeVar("T", Metrics, DevicePoint)


def fleet_history(run: str, rounds: Sequence[Metrics], last: Metrics) -> History:
    """The fleet's curves. `rounds`: in their order, `last` with the figures of its devices."""
    points = tuple(
        HistoryPoint(
            round=metrics.round,
            time=metrics.time,
            seconds=round(metrics.seconds, 1),
            exit=_short(metrics.fleet.exit_accuracy),
            trunk=_short(metrics.fleet.trunk_accuracy),
            adaptive=_short(metrics.fleet.adaptive_accuracy),
        )
        for metrics in thinned(rounds)
    )
    return History(run=run, points=points, baselines=baselines(last))


def baselines(metrics: Metrics) -> Baselines:
    """Accuracies of the baselines on the evaluated images."""
    images = [found.images for found in metrics.fleet.class_recalls]
    all_told = sum(images) == metrics.fleet.images > 0  # of many classes only some are told
    alone = [
        (found.alone_accuracy, found.held_out_samples)
        for found in metrics.devices.values()
        if found.alone_accuracy is not None and found.held_out_samples
    ]
    count = sum(held_out for _, held_out in alone)
    return Baselines(
        majority=_short(max(images) / metrics.fleet.images) if all_told else None,
        alone=_short(sum(share * held_out for share, held_out in alone) / count) if count else None,
    )


def thinned(points: Sequence[T]) -> list[T]:
    """At most MOST_POINTS points in ascending rounds: the first, the last, and evenly spaced ones between.

    Kept rounds are multiples of a power of two, so that a curve may be thinned again and again.
    """
    stride = 1
    while sum(point.round % stride == 0 for point in points) > MOST_POINTS - 2:
        stride *= 2
    ends = {point.round for point in (*points[:1], *points[-1:])}
    return [point for point in points if point.round % stride == 0 or point.round in ends]


class DeviceCurves:
    """The devices' own curves, in a fleet of at most MOST_CURVES devices."""

    def __init__(self, history: Iterable[Metrics] = ()) -> None:
        """`history`: the rounds so far; if one is there twice, the last counts."""
        self._points: dict[str, dict[int, DevicePoint]] = {}
        for metrics in history:
            self.add(metrics)

    def add(self, metrics: Metrics) -> None:
        """Note a round that has been evaluated, possibly again."""
        if len(metrics.devices) > MOST_CURVES:
            self._points.clear()
            return
        for device, point in _points(metrics.round, metrics.devices):
            points = self._points.setdefault(device, {})
            points[metrics.round] = point
            if len(points) > 2 * MOST_POINTS:
                self._points[device] = {kept.round: kept for kept in _thinned(points)}

    def of(self, run: str, devices: Iterable[str]) -> Iterator[tuple[str, DeviceHistory]]:
        """The curves of these devices, if they were evaluated."""
        for device in devices:
            if points := self._points.get(device):
                yield device, DeviceHistory(run=run, points=tuple(_thinned(points)))


def _thinned(points: Mapping[int, DevicePoint]) -> list[DevicePoint]:
    return thinned([points[number] for number in sorted(points)])


def _points(number: int, devices: Mapping[str, DeviceMetrics]) -> Iterator[tuple[str, DevicePoint]]:
    """The points of the devices that were evaluated in this round."""
    for device, found in devices.items():
        if found.held_out_samples and not found.evaluated:
            yield (
                device,
                DevicePoint(
                    round=number,
                    exit=_short(found.exit_accuracy),
                    trunk=_short(found.trunk_accuracy),
                    adaptive=_short(found.adaptive_accuracy),
                ),
            )


def round_took(metrics: Metrics, before: Metrics | None) -> float | None:
    """Seconds of a round; None: unknown."""
    if metrics.spent is not None:
        return float(sum(msgspec.structs.astuple(metrics.spent)))
    if before is not None and before.round == metrics.round - 1:
        return max(metrics.seconds - before.seconds, 0.0)
    return None


def _short(share: float | None) -> float | None:
    return None if share is None else round(share, 4)
