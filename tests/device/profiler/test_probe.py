# SPDX-License-Identifier: Apache-2.0
"""Which cuts are measured, in which order, and how two measurements of one cut are combined."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest
from msgspec.structs import replace
from profiles import DESCRIPTION, REFERENCE, SPEC, true_costs

from splitee_device.profiler.costs import CutCosts, Failed, MeasureCut, Setup
from splitee_device.profiler.probe import Plan, Probe

LONG = 1000.0  # seconds left


def plan(seconds: float = LONG) -> Plan:
    return Plan(SPEC, DESCRIPTION, None, 1.0, time.monotonic() + seconds)


def measure(planned: Plan, *factors: float, seconds: float = 2.0) -> list[int]:
    """Measures each wanted cut as `factors` times its true costs; returns the cuts in order."""
    done: list[int] = []
    while (wanted := planned.next()) is not None:
        planned.take(wanted, measurement(wanted, factors[done.count(wanted.cut)], seconds))
        done.append(wanted.cut)
    return done


def measurement(wanted: MeasureCut, factor: float, seconds: float) -> CutCosts:
    costs = true_costs(wanted.cut)
    return replace(costs, step=factor * costs.step, memory=round(factor * costs.memory), seconds=seconds)


def test_each_cut_is_measured_twice_and_both_measurements_count() -> None:
    planned = plan()
    assert measure(planned, 1.0, 3.0) == [1, 4, 3, 2] * 2
    for cut, costs in planned.costs.items():
        truth = true_costs(cut)
        assert costs.step == pytest.approx(2 * truth.step)
        assert costs.spread == pytest.approx(truth.step)  # each is so far from the mean
        assert (costs.memory, costs.steps) == (3 * truth.memory, 2 * truth.steps)
        assert costs.forward == pytest.approx(truth.forward)


def test_measurements_at_varying_speed_are_scaled_to_the_mean_speed() -> None:
    planned = plan()
    slowness = iter([1.0, 2.0, 3.0, 2.0] * 2)  # 2.0 in the mean
    while (wanted := planned.next()) is not None:
        planned.take(wanted, true_costs(wanted.cut).slower(next(slowness)))
    assert set(planned.costs) == {1, 2, 3, 4}
    for cut, costs in planned.costs.items():
        truth = true_costs(cut)
        assert costs.step == pytest.approx(2 * truth.step)
        assert (costs.encoding, costs.cpu) == pytest.approx((2 * truth.encoding, 2 * truth.cpu))
        assert costs.reference == pytest.approx(2 * REFERENCE)
        assert costs.memory == truth.memory


def test_second_measurements_are_skipped_beyond_half_of_the_time() -> None:
    assert sorted(measure(plan(), 1.0, 1.0, seconds=0.51 * LONG)) == [1, 2, 3, 4]


def test_cut_killed_at_its_second_measurement_counts_as_failed() -> None:
    planned = plan()
    for _ in range(4):
        wanted = planned.next()
        assert wanted is not None
        planned.take(wanted, true_costs(wanted.cut))
    again = planned.next()
    assert again is not None
    planned.take(again, Failed(message="ran out of memory", killed=True))
    assert again.cut in planned.failed
    assert again.cut not in planned.costs


def test_worker_killed_again_while_it_restarts_is_a_cut_that_does_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system kills each new worker, for lack of memory, before it can reply."""
    killed = tmp_path / "python"
    killed.write_text("#!/bin/sh\nkill -9 $$\n")
    killed.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(killed))
    setup = Setup(spec=SPEC, threads=1, bursty=False)
    with Probe(setup, time.monotonic() + LONG, lambda: None) as probe:
        for cut in (1, 2):
            found = probe.measure(MeasureCut(cut=cut, seconds=1.0, most=5.0))
            assert found == Failed(message="ran out of memory", killed=True)
