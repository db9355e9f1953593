# SPDX-License-Identifier: Apache-2.0
"""Curves over the rounds of a run of any length, and their baselines."""

from __future__ import annotations

from itertools import pairwise

import pytest
from msgspec.structs import replace

from splitee.protocol.accuracies import ClassRecall
from splitee.protocol.fleet import DeviceMetrics, FleetMetrics, Metrics, RoundSeconds
from splitee.protocol.overview import MOST_CURVES, MOST_POINTS, Baselines, DevicePoint
from splitee.protocol.routes import LARGEST_WHOLE
from splitee_server.rounds.curves import DeviceCurves, baselines, fleet_history, round_took, thinned

DEVICE = DeviceMetrics(
    cut=1,
    stage="conv1",
    train_samples=10,
    held_out_samples=100,
    exit_accuracy=0.123456,
    trunk_accuracy=0.654321,
    adaptive_accuracy=0.5,
)
FLEET = FleetMetrics(images=100, exit_accuracy=0.123456, trunk_accuracy=0.654321, adaptive_accuracy=0.5)


def metrics(number: int, seconds: float = 0.0, devices: dict[str, DeviceMetrics] | None = None) -> Metrics:
    return Metrics(
        run="r" * 64,
        round=number,
        rounds=100_000,
        seconds=seconds or 1e6 * number,
        batches_trained=0,
        duplicates_dropped=0,
        devices=devices or {},
        fleet=FLEET,
        time=1_800_000_000.5,
    )


@pytest.mark.parametrize("count", [0, 1, 2, MOST_POINTS - 1, MOST_POINTS, MOST_POINTS + 1, 1000, 12_345])
def test_curve_of_any_length_is_thinned_evenly_and_keeps_its_ends(count: int) -> None:
    rounds = [DevicePoint(round=number) for number in range(1, count + 1)]
    chosen = [point.round for point in thinned(rounds)]
    assert min(count, MOST_POINTS // 2 - 2) <= len(chosen) <= MOST_POINTS
    assert chosen == sorted(set(chosen))
    if count:
        assert (chosen[0], chosen[-1]) == (1, count)
        assert len({after - before for before, after in pairwise(chosen[1:-1])}) <= 1


def test_curve_thinned_while_it_grows_is_nearly_even() -> None:
    curves, count = DeviceCurves(), 12_345
    for number in range(1, count + 1):
        curves.add(metrics(number, devices={"a": DEVICE}))
    ((_, told),) = curves.of("r1", ["a"])
    chosen = [point.round for point in told.points]
    assert MOST_POINTS // 2 < len(chosen) <= MOST_POINTS
    assert (chosen[0], chosen[-1]) == (1, count)
    gaps = [after - before for before, after in pairwise(chosen[1:-1])]
    assert max(gaps) <= 2 * count / MOST_POINTS


def test_history_of_a_thousand_rounds_fits_one_message() -> None:
    rounds = [metrics(number) for number in range(1, 1001)]
    told = fleet_history("r" * 64, rounds, rounds[-1])
    assert len(told.encode()) < LARGEST_WHOLE
    assert type(told).decode(told.encode()) == told
    assert told.points[-1].round == 1000


def test_device_curve_has_only_the_rounds_that_evaluated_the_device() -> None:
    earlier, none = replace(DEVICE, evaluated=1), replace(DEVICE, held_out_samples=0)
    curves = DeviceCurves(
        [
            metrics(1, devices={"a": DEVICE, "b": none}),
            metrics(2, devices={"a": earlier, "b": DEVICE}),
            metrics(2, devices={"a": earlier, "b": replace(DEVICE, exit_accuracy=0.9)}),
        ]
    )
    told = dict(curves.of("r1", ["a", "b", "c"]))
    assert {device: [point.round for point in curve.points] for device, curve in told.items()} == {
        "a": [1],
        "b": [2],
    }
    assert told["b"].points[0].exit == 0.9, "of a round that was evaluated twice the last figures count"


def test_device_curves_are_dropped_when_the_fleet_grows_too_large() -> None:
    curves = DeviceCurves([metrics(1, devices={"a": DEVICE})])
    curves.add(metrics(2, devices={f"pi-{index}": DEVICE for index in range(MOST_CURVES + 1)}))
    assert not dict(curves.of("r1", ["a", "pi-1"]))


def test_baselines_are_weighted_by_images_and_need_every_class() -> None:
    recalls = (ClassRecall("a", 75, 0.5), ClassRecall("b", 25, 0.5))
    devices = {
        "a": replace(DEVICE, alone_accuracy=0.5),
        "b": replace(DEVICE, alone_accuracy=0.8, held_out_samples=200),
        "c": DEVICE,
    }
    last = replace(metrics(1, devices=devices), fleet=replace(FLEET, class_recalls=recalls))
    assert baselines(last) == Baselines(majority=0.75, alone=0.7)
    part = replace(last, devices={}, fleet=replace(FLEET, class_recalls=recalls[:1]))
    assert baselines(part) == Baselines(), "of a run of very many classes not all are told"


def test_round_duration_is_derived_from_totals_without_its_breakdown() -> None:
    first, second = metrics(1, 100.0), metrics(2, 130.0)
    assert round_took(first, None) is None
    assert round_took(second, first) == 30.0
    assert round_took(metrics(4, 300.0), second) is None
    spent = RoundSeconds(training=8.0, waiting=4.0, commit=0.5)
    assert round_took(replace(first, spent=spent), None) == 12.5
