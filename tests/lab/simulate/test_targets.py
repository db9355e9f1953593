# SPDX-License-Identifier: Apache-2.0
"""Targets of a strategy, met or missed, on given figures."""

from __future__ import annotations

import pytest

from splitee_lab.simulate.results import CutResult, Figure, MethodResult
from splitee_lab.simulate.targets import targets_of


def result(
    method: str,
    accuracy: float | None,
    trunks: dict[int, float] | None = None,
    exits: dict[int, float] | None = None,
    compute: float = 1.0,
    adaptive: dict[int, tuple[float, float]] | None = None,  # and the share that is offloaded
) -> MethodResult:
    def figure(value: float | None) -> Figure | None:
        return None if value is None else Figure(value, None)

    return MethodResult(
        method=method,
        seeds=[1],
        accuracy=figure(accuracy),
        exit_accuracy=figure(sum(exits.values()) / len(exits)) if exits else None,
        adaptive_accuracy=None,
        offload_share=None,
        by_cut=[
            CutResult(
                cut,
                figure((trunks or {}).get(cut)),
                figure((exits or {}).get(cut)),
                *map(figure, (adaptive or {}).get(cut, (None, None))),
            )
            for cut in sorted({*(trunks or {}), *(exits or {})})
        ],
        bytes=Figure(0, None),
        macs=Figure(0, None),
        compute_share=Figure(compute, None),
        seconds=Figure(0, None),
        course=[],
    )


BASELINES = [
    result("fedavg", 0.60),
    result("centralized", 0.67, compute=0.0),
    result("alone-exit", None, exits={1: 0.30, 2: 0.40}, compute=0.4),
    result("cse-fsl", 0.58, exits={1: 0.35, 2: 0.45}, compute=0.4),  # no strategy, though it has exits
]


@pytest.mark.parametrize(
    ("strategy", "partition", "met"),
    [
        (result("sequential", 0.66, {1: 0.66, 2: 0.66}, {1: 0.36, 2: 0.41}, 0.4), "iid", [1] * 6),
        (result("sequential", 0.64, {1: 0.64, 2: 0.64}, {1: 0.36, 2: 0.46}, 0.4), "iid", [1, 1, 0, 1, 1, 1]),
        (result("sequential", 0.64, {1: 0.64, 2: 0.64}, {1: 0.36, 2: 0.46}, 0.4), "dirichlet:0.5", [1] * 6),
        (
            result("averaging", 0.59, {1: 0.63, 2: 0.55}, {1: 0.34, 2: 0.39}, 0.5),
            "shards:2",
            [0, 0, 0, 0, 0, 0],
        ),
    ],
)
def test_targets_are_met_or_missed_by_strategy_and_partition(
    strategy: MethodResult, partition: str, met: list[int]
) -> None:
    found = targets_of([strategy, *BASELINES], partition)
    assert {target.method for target in found} == {strategy.method}
    assert [target.met for target in found] == [bool(one) for one in met]


def test_targets_without_a_method_to_compare_with_are_left_out() -> None:
    strategy = result("sequential", 0.62, {1: 0.62}, {1: 0.36}, 0.4)
    assert len(targets_of([strategy], "iid")) == 1  # the cuts beside their mean
    assert targets_of(BASELINES, "iid") == []


def test_exits_are_judged_at_the_cut_that_gains_least_and_at_the_shallowest() -> None:
    strategy = result("sequential", 0.62, {1: 0.62, 2: 0.62}, {1: 0.50, 2: 0.42}, 0.4)
    exits = [one for one in targets_of([strategy, *BASELINES], "iid") if "exit" in one.what]
    assert [round(one.value, 6) for one in exits] == [0.02, 0.20]


@pytest.mark.parametrize(
    ("adaptive", "met"),
    [
        ({1: (0.53, 0.30), 2: (0.54, 0.10)}, [True, True]),
        ({1: (0.53, 0.31), 2: (0.51, 0.10)}, [False, False]),
    ],
)
def test_adaptive_inference_is_judged_against_the_whole_network_alone(
    adaptive: dict[int, tuple[float, float]], met: list[bool]
) -> None:
    strategy = result("sequential", 0.62, {1: 0.62, 2: 0.62}, {1: 0.50, 2: 0.42}, 0.4, adaptive)
    alone = result("alone", 0.50, trunks={1: 0.50, 2: 0.50})
    found = targets_of([strategy, alone], "iid")
    assert [one.met for one in found if "adaptive" in one.what or "offloads" in one.what] == met
