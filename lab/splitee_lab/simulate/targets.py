"""What a strategy should reach beside FedAvg, centralized training and clients alone; and whether it does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import msgspec

from splitee_lab.methods.registry import STRATEGIES
from splitee_lab.simulate.results import CutResult, Figure, MethodResult

BELOW_CENTRALIZED = {"iid": 0.05}  # at most, by partition
BELOW_CENTRALIZED_ELSE = 0.10
OVER_ALONE = 0.05  # each cut's exit over the exit that is trained alone, at least
BELOW_MEAN = 0.03  # a cut's trunk under the mean of the cuts, at most
OF_FEDAVGS_COMPUTE = 0.5  # less than


class Target(msgspec.Struct, frozen=True):
    """One figure of a strategy beside its bound; differences of accuracies are fractions."""

    method: str
    what: str
    value: float
    bound: str
    met: bool


def targets_of(results: Sequence[MethodResult], partition: str) -> list[Target]:
    """Every target of every strategy for which the comparison has what it is measured by."""
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
    fedavg, centralized, alone = (others.get(one) for one in ("fedavg", "centralized", "alone-exit"))
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
    if gains := _over(result.by_cut, alone.by_cut if alone else ()):
        least = min(gains)
        bound = f"at least {OVER_ALONE:.0%}"
        yield Target(name, "exit over alone-exit, least of cuts", least, bound, least >= OVER_ALONE)
    if trunks := [found.accuracy.mean for found in result.by_cut if found.accuracy]:
        worst = sum(trunks) / len(trunks) - min(trunks)
        bound = f"at most {BELOW_MEAN:.0%}"
        yield Target(name, "a cut's trunk under their mean", worst, bound, worst <= BELOW_MEAN)


def _over(own: Sequence[CutResult], alone: Sequence[CutResult]) -> list[float]:
    """Exit accuracy of each cut, less that of the other method at the same cut."""
    there = {found.cut: found.exit_accuracy for found in alone}
    return [
        found.exit_accuracy.mean - other.mean
        for found in own
        if found.exit_accuracy and (other := there.get(found.cut))
    ]
