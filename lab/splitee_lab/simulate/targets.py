# SPDX-License-Identifier: Apache-2.0
"""Targets of a strategy, relative to FedAvg, centralized training and clients alone; are they met?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import msgspec

from splitee_lab.methods.registry import STRATEGIES
from splitee_lab.simulate.results import CutResult, Figure, MethodResult

BELOW_CENTRALIZED = {"iid": 0.02}  # at most, by partition
BELOW_CENTRALIZED_ELSE = 0.04
ADAPTIVE_OVER_ALONE = 0.02  # at each cut, over the whole network alone, at least
OFFLOADS = 0.30  # of the images, for that, at most
SHALLOWEST_OVER_ALONE = 0.05  # the shallowest cut's exit over the same exit trained alone, at least
BELOW_MEAN = 0.03  # a cut's trunk under the mean of the cuts, at most
OF_FEDAVGS_COMPUTE = 0.5  # less than


Pick = Callable[[CutResult], Figure | None]


class Target(msgspec.Struct, frozen=True):
    """One figure of a strategy with its bound; differences of accuracies are fractions."""

    method: str
    what: str
    value: float
    bound: str
    met: bool


def targets_of(results: Sequence[MethodResult], partition: str) -> list[Target]:
    """Every target of every strategy for which the comparison has the necessary methods."""
    by_name = {result.method: result for result in results}
    return [
        target
        for result in results
        if result.method in STRATEGIES and result.accuracy
        for target in _targets(result, result.accuracy, by_name, partition)
    ]


def _targets(
    result: MethodResult, trunk: Figure, others: Mapping[str, MethodResult], partition: str
) -> Iterator[Target]:
    name = result.method
    fedavg, centralized = others.get("fedavg"), others.get("centralized")
    if fedavg and fedavg.accuracy:
        over = trunk.mean - fedavg.accuracy.mean
        yield Target(name, "trunk over fedavg", over, "at least 0", over >= 0)
        compute = result.compute_share.mean / fedavg.compute_share.mean
        bound = f"under {OF_FEDAVGS_COMPUTE:.0%}"
        yield Target(name, "compute of fedavg's", compute, bound, compute < OF_FEDAVGS_COMPUTE)
    if centralized and centralized.accuracy:
        below = centralized.accuracy.mean - trunk.mean
        most = BELOW_CENTRALIZED.get(partition, BELOW_CENTRALIZED_ELSE)
        yield Target(name, "trunk under centralized", below, f"at most {most:.0%}", below <= most)
    yield from _over_alone(result, others)
    if trunks := [found.accuracy.mean for found in result.by_cut if found.accuracy]:
        worst = sum(trunks) / len(trunks) - min(trunks)
        bound = f"at most {BELOW_MEAN:.0%}"
        yield Target(name, "a cut's trunk under their mean", worst, bound, worst <= BELOW_MEAN)


def _over_alone(result: MethodResult, others: Mapping[str, MethodResult]) -> Iterator[Target]:
    name = result.method
    if gains := _gains(result.by_cut, _adaptive, others.get("alone"), _accuracy):
        least, bound = min(gains), f"at least {ADAPTIVE_OVER_ALONE:.0%}"
        yield Target(name, "adaptive over alone, least of cuts", least, bound, least >= ADAPTIVE_OVER_ALONE)
        most = max(found.offload_share.mean for found in result.by_cut if found.offload_share)
        yield Target(name, "offloads, most of cuts", most, f"at most {OFFLOADS:.0%}", most <= OFFLOADS)
    if gains := _gains(result.by_cut, _exit, others.get("alone-exit"), _exit):
        least, first = min(gains), gains[0]
        yield Target(name, "exit over alone-exit, least of cuts", least, "at least 0", least >= 0)
        bound = f"at least {SHALLOWEST_OVER_ALONE:.0%}"
        met = first >= SHALLOWEST_OVER_ALONE
        yield Target(name, "exit over alone-exit, shallowest cut", first, bound, met)


def _gains(own: Sequence[CutResult], figure: Pick, alone: MethodResult | None, beside: Pick) -> list[float]:
    """By cut, the shallowest first: a figure minus that of the other method at the same cut."""
    there = {found.cut: beside(found) for found in alone.by_cut} if alone else {}
    return [
        value.mean - other.mean
        for found in own
        if (value := figure(found)) and (other := there.get(found.cut))
    ]


def _accuracy(found: CutResult) -> Figure | None:
    return found.accuracy


def _exit(found: CutResult) -> Figure | None:
    return found.exit_accuracy


def _adaptive(found: CutResult) -> Figure | None:
    return found.adaptive_accuracy
