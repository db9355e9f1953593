# SPDX-License-Identifier: Apache-2.0
"""The plan of a fleet: least time of the slowest device, and the deepest cuts within it."""

from __future__ import annotations

import io
from itertools import product
from math import isfinite

from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from splitee.protocol.fleet import Capability, CutCost
from splitee.round_time import round_seconds
from splitee_server.commands.plan import _table
from splitee_server.planning import Candidate, Planned, candidates, plan_fleet


def capability(seconds: list[float], fits: list[bool], upload: float | None) -> Capability:
    cuts = [
        CutCost(cut, each, 1000 * cut, 1, fit)
        for cut, (each, fit) in enumerate(zip(seconds, fits, strict=True), 1)
    ]
    return Capability(
        network="n",
        batch_size=32,
        codec="fp16",
        machine="m",
        cores=1,
        threads=1,
        upload=upload,
        round_trip=0.1,
        cuts=tuple(cuts),
    )


def test_candidates_are_the_cuts_that_fit_with_their_round_seconds() -> None:
    found = candidates(capability([0.1, 0.2, 0.3], [True, False, True], upload=1e4), steps=10, window=8)
    assert found == [
        Candidate(1, round_seconds(10, 0.1, 0.1, 0.1, 8), 1000),
        Candidate(3, round_seconds(10, 0.3, 0.3, 0.1, 8), 3000),
    ]


def test_fast_devices_take_deeper_cuts_within_the_slowest_devices_time() -> None:
    slow = [Candidate(cut, 10.0 * cut, 1) for cut in (1, 2, 3)]
    fast = [Candidate(cut, 4.0 * cut, 1) for cut in (1, 2, 3)]
    plan = {row.device: row for row in plan_fleet({"slow": slow, "fast": fast})}
    assert (plan["slow"].cut, plan["fast"].cut) == (1, 2)
    assert "the slowest" in plan["slow"].reason
    assert "cut 3 would take 12 s" in plan["fast"].reason


def test_device_that_fits_no_cut_is_named_and_does_not_affect_the_plan() -> None:
    plan = {row.device: row for row in plan_fleet({"full": [], "fine": [Candidate(1, 2.0, 1)]})}
    assert (plan["full"].cut, plan["full"].reason) == (None, "no cut fits it")
    assert plan["fine"].cut == 1


def test_extreme_costs_claimed_by_a_device_give_a_finite_plan() -> None:
    planned = plan_fleet({"idle": [Candidate(1, 0.0, 1)]})
    Console(file=io.StringIO()).print(_table(planned, 0))
    [slow] = candidates(capability([1e15], [True], upload=5e-324), steps=10**6, window=1)
    assert isfinite(slow.seconds), "it is JSON"


times = st.lists(st.floats(0.1, 100), min_size=1, max_size=4)


@given(st.lists(times, min_size=1, max_size=4))
def test_plan_is_the_fastest_and_among_the_fastest_the_deepest(fleet: list[list[float]]) -> None:
    choices = {
        f"pi-{n}": [Candidate(cut, seconds, 1) for cut, seconds in enumerate(own, 1)]
        for n, own in enumerate(fleet)
    }
    planned = plan_fleet(choices)
    slowest = max(row.seconds or 0.0 for row in planned)
    every = list(product(*choices.values()))
    assert slowest == min(max(choice.seconds for choice in each) for each in every)
    deepest = max(
        sum(choice.cut for choice in each)
        for each in every
        if max(choice.seconds for choice in each) <= slowest
    )
    assert sum(row.cut or 0 for row in planned) == deepest


def test_plan_table_escapes_control_characters_and_keeps_markup() -> None:
    written = io.StringIO()
    evil = Planned("pi-1\x1b[2J\n[red]", None, None, "no cut\r\n\x9b31m [blink]")
    Console(file=written, width=200, force_terminal=True, color_system=None).print(_table([evil], 0))
    lines = written.getvalue().removesuffix("\n").split("\n")
    assert all(line.isprintable() for line in lines)
    assert lines[-1].split("  ")[0] == r"pi-1\x1b[2J\n[red]"
    assert lines[-1].rstrip().endswith(r"no cut\r\n\x9b31m [blink]")
