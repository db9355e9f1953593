"""What is said of a strategy beside its targets, on figures known by heart."""

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
            CutResult(cut, figure((trunks or {}).get(cut)), figure((exits or {}).get(cut)))
            for cut in sorted({*(trunks or {}), *(exits or {})})
        ],
        bytes=Figure(0, None),
        macs=Figure(0, None),
        compute_share=Figure(compute, None),
        seconds=Figure(0, None),
        course=[],
    )


OTHERS = [
    result("fedavg", 0.60),
    result("centralized", 0.67, compute=0.0),
    result("alone-exit", None, exits={1: 0.30, 2: 0.40}, compute=0.4),
    result("cse-fsl", 0.58, exits={1: 0.35, 2: 0.45}, compute=0.4),  # no strategy, though it has exits
]


@pytest.mark.parametrize(
    ("strategy", "partition", "met"),
    [
        (result("sequential", 0.63, {1: 0.63, 2: 0.63}, {1: 0.36, 2: 0.46}, 0.4), "iid", [1, 1, 1, 1, 1]),
        (result("sequential", 0.61, {1: 0.61, 2: 0.61}, {1: 0.36, 2: 0.46}, 0.4), "iid", [1, 1, 0, 1, 1]),
        (result("sequential", 0.61, {1: 0.61, 2: 0.61}, {1: 0.36, 2: 0.46}, 0.4), "dirichlet:0.5", [1] * 5),
        (result("averaging", 0.59, {1: 0.63, 2: 0.55}, {1: 0.36, 2: 0.44}, 0.5), "shards:2", [0, 0, 1, 0, 0]),
    ],
)
def test_each_target_is_met_or_not(strategy: MethodResult, partition: str, met: list[int]) -> None:
    found = targets_of([strategy, *OTHERS], partition)
    assert {target.method for target in found} == {strategy.method}
    assert [target.met for target in found] == [bool(one) for one in met]


def test_what_a_comparison_lacks_is_left_out() -> None:
    strategy = result("sequential", 0.62, {1: 0.62}, {1: 0.36}, 0.4)
    assert len(targets_of([strategy], "iid")) == 1  # the cuts beside their mean
    assert targets_of(OTHERS, "iid") == []


def test_the_least_of_the_cuts_decides_for_the_exits() -> None:
    strategy = result("sequential", 0.62, {1: 0.62, 2: 0.62}, {1: 0.50, 2: 0.42}, 0.4)
    exits = [one for one in targets_of([strategy, *OTHERS], "iid") if "exit" in one.what]
    assert [round(one.value, 6) for one in exits] == [0.02]
