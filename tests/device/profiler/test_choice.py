# SPDX-License-Identifier: Apache-2.0
"""The choice of a cut, and the reason given for it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from profiles import MIB, measured

from splitee_device.profiler.choice import Preference, choose
from splitee_device.profiler.cost_model import LinkSpeed, Work, predict

ALL = (1, 2, 3, 4)


def chosen(
    prefer: Preference, *, available: int | None = None, cores: float = 1.0, **work: object
) -> tuple[int | None, str]:
    found = measured(ALL, available=available, cores=cores)
    todo = Work(**{"samples": 320, "steps": 10, "reserve": 0, **work})  # type: ignore[arg-type]
    choice = choose(predict(found, todo), prefer, found, todo)
    return choice.cut, choice.reason


def needed(cut: int) -> int:
    return predict(measured(ALL), Work(320, 10, 0))[cut - 1].needed


def test_fastest_cut_is_the_shallowest_without_a_measured_link() -> None:
    cut, reason = chosen("fastest")
    assert cut == 1
    assert "without a measured link" in reason


def test_cut_below_the_owners_lowest_is_not_chosen() -> None:
    assert chosen("fastest", lowest_cut=2)[0] == 2
    cut, reason = chosen("fastest", lowest_cut=2, available=needed(1))
    assert cut is None and reason.startswith("no cut fits this device; cut 2: it needs")


def test_fastest_cut_is_the_deepest_on_a_slow_link() -> None:
    cut, reason = chosen("fastest", link=LinkSpeed(upload=2e5, round_trip=0.01))
    assert cut == 4
    assert "the link sets its pace" in reason


def test_fastest_cut_has_the_shortest_round_on_a_medium_link() -> None:
    found = measured(ALL)
    todo = Work(320, 10, 0, link=LinkSpeed(upload=8e6, round_trip=0.0))
    rows = predict(found, todo)
    assert choose(rows, "fastest", found, todo).cut == min(rows, key=lambda row: row.round).cut


def test_deepest_cut_is_the_last_that_fits_and_the_next_is_explained() -> None:
    cut, reason = chosen("deepest", available=needed(3))
    assert cut == 3
    assert "cut 4 does not: it needs" in reason
    assert chosen("deepest")[1].endswith("the last there is")


def test_lightest_cut_takes_the_least_memory_then_the_fewest_bytes() -> None:
    found = measured(ALL)
    todo = Work(320, 10, 0)
    rows = predict(found, todo)
    best = choose(rows, "lightest", found, todo)
    bound = 1.02 * min(row.memory for row in rows)
    assert best.cut == min((row for row in rows if row.memory <= bound), key=lambda row: row.payload).cut
    assert "MiB" in best.reason


@pytest.mark.parametrize(("slower", "cut"), [(1.015, 4), (1.05, 1)])
def test_rounds_within_two_percent_are_a_tie(slower: float, cut: int) -> None:
    found, todo = measured(ALL), Work(320, 10, 0)
    first, *_, last = predict(found, todo)
    rows = [first, replace(last, round=first.round * slower)]
    assert last.payload < first.payload
    assert choose(rows, "fastest", found, todo).cut == cut


def test_ties_go_to_fewer_bytes() -> None:
    # With one batch a round and a link that costs nothing, cuts differ by training; a long trip hides that.
    cut, reason = chosen("fastest", steps=1, link=LinkSpeed(upload=1e12, round_trip=10.0))
    assert cut == 4
    assert "the fastest round" in reason


@pytest.mark.parametrize("prefer", ["fastest", "deepest", "lightest"])
def test_cut_that_does_not_fit_is_never_chosen(prefer: Preference) -> None:
    cut, _ = chosen(prefer, available=needed(2), link=LinkSpeed(upload=1e5, round_trip=0.0))
    assert cut in (1, 2)


def test_reason_suggests_flags_if_no_cut_fits_the_memory() -> None:
    least = min(map(needed, ALL))
    cut, reason = chosen("fastest", available=least - 1 * MIB)
    assert cut is None
    assert f"it needs {least / MIB:.0f} MiB" in reason
    assert "--batch-size 16" in reason
    assert "--codec int8" in reason


def test_reason_suggests_a_cpu_share_if_the_cpu_is_too_busy() -> None:
    cut, reason = chosen("fastest", cpu_share=0.2)
    assert cut is None
    assert "it keeps 100% of the CPU busy, 20% are wanted" in reason
    assert "--cpu-share" in reason
