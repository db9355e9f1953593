# SPDX-License-Identifier: Apache-2.0
"""The results of a comparison: each method's figures at the end and over the rounds, over its seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import mean, stdev

import msgspec

from splitee.protocol.traffic import DIRECTIONS, PURPOSES, Traffic
from splitee_lab.methods.experiment import Accuracy, RoundResult
from splitee_lab.simulate.jobs import JobResult

Pick = Callable[[Accuracy], float | None]


class Figure(msgspec.Struct, frozen=True):
    """Over the seeds: the mean, and the sample standard deviation if there are two or more."""

    mean: float
    spread: float | None


class CutResult(msgspec.Struct, frozen=True):
    """The clients of one cut, after the last round: means over them, as in `MethodResult`."""

    cut: int
    accuracy: Figure | None = None
    exit_accuracy: Figure | None = None
    adaptive_accuracy: Figure | None = None
    offload_share: Figure | None = None


class Point(msgspec.Struct, frozen=True):
    """A method after a round: means over clients and seeds, bytes and MACs of a client so far."""

    round: int
    accuracy: float | None
    exit_accuracy: float | None
    bytes: float
    macs: float


class MethodResult(msgspec.Struct, frozen=True):
    """One method. `bytes`: sent and received by a client, `macs`: its multiply-accumulates, in all rounds.

    `compute_share`: its share of the multiply-accumulates for the whole network at each client.
    `traffic`: bytes of a client in all rounds by direction and purpose, means over clients and seeds,
    including those of evaluation, which `bytes` leaves out; empty if a stored part has none.
    """

    method: str
    seeds: list[int]
    accuracy: Figure | None
    exit_accuracy: Figure | None
    adaptive_accuracy: Figure | None
    offload_share: Figure | None
    by_cut: list[CutResult]
    bytes: Figure
    macs: Figure
    compute_share: Figure
    seconds: Figure
    course: list[Point]
    traffic: dict[str, dict[str, float]] = {}


def summarize(parts: Sequence[JobResult]) -> list[MethodResult]:
    """A result for each method, in the order in which they come."""
    methods: dict[str, list[JobResult]] = {}
    for part in parts:
        methods.setdefault(part.job.method, []).append(part)
    return [_summarize(method, own) for method, own in methods.items()]


def _summarize(method: str, parts: list[JobResult]) -> MethodResult:
    picks: dict[str, Pick] = {name: _pick(name) for name in Accuracy.__struct_fields__}
    cuts = sorted({facts.cut for part in parts for facts in part.clients.values()})
    by_cut = [
        CutResult(
            cut, **{name: _figure(_last(part, pick, cut) for part in parts) for name, pick in picks.items()}
        )
        for cut in cuts
    ]
    return MethodResult(
        method=method,
        seeds=[part.job.run.seed for part in parts],
        by_cut=[result for result in by_cut if result.accuracy or result.exit_accuracy],
        bytes=_mean_and_spread(_per_client(part, lambda done: done.bytes) for part in parts),
        macs=_mean_and_spread(_per_client(part, lambda done: done.macs) for part in parts),
        compute_share=_mean_and_spread(
            sum(done.macs for done in part.rounds) / part.whole_macs for part in parts
        ),
        seconds=_mean_and_spread(part.seconds for part in parts),
        course=list(_course(parts)),
        traffic=_traffic(parts),
        **{name: _figure(_last(part, pick) for part in parts) for name, pick in picks.items()},
    )


def _pick(name: str) -> Pick:
    return lambda accuracy: getattr(accuracy, name)


def _last(part: JobResult, pick: Pick, cut: int | None = None) -> float | None:
    """Mean over the clients after the last round, all or those of a cut."""
    found = part.rounds[-1].accuracies
    if cut is not None:
        found = {name: one for name, one in found.items() if _cut_of(part, name) == cut}
    return _mean(found, pick)


def _cut_of(part: JobResult, name: str) -> int | None:
    facts = part.clients.get(name)
    return facts.cut if facts else None


def _mean(found: Mapping[str, Accuracy], pick: Pick) -> float | None:
    values = [value for one in found.values() if (value := pick(one)) is not None]
    return mean(values) if values else None


def _per_client(part: JobResult, cost: Callable[[RoundResult], int]) -> float:
    return sum(map(cost, part.rounds)) / len(part.clients)


def _traffic(parts: Sequence[JobResult]) -> dict[str, dict[str, float]]:
    recorded = [[done.traffic for done in part.rounds if done.traffic is not None] for part in parts]
    if any(len(known) < len(part.rounds) for known, part in zip(recorded, parts, strict=True)):
        return {}
    sums = [sum(known, Traffic()) for known in recorded]
    return {
        direction: {
            purpose: mean(
                getattr(getattr(total, direction), purpose) / len(part.clients)
                for total, part in zip(sums, parts, strict=True)
            )
            for purpose in PURPOSES
        }
        for direction in DIRECTIONS
    }


def _course(parts: list[JobResult]) -> Iterator[Point]:
    sent, macs = 0.0, 0.0
    for rounds in zip(*(part.rounds for part in parts), strict=True):
        sent += mean(done.bytes / len(part.clients) for done, part in zip(rounds, parts, strict=True))
        macs += mean(done.macs / len(part.clients) for done, part in zip(rounds, parts, strict=True))
        if all(done.accuracies for done in rounds):
            yield Point(
                rounds[0].round,
                _over_seeds(rounds, lambda one: one.accuracy),
                _over_seeds(rounds, lambda one: one.exit_accuracy),
                sent,
                macs,
            )


def _over_seeds(rounds: Sequence[RoundResult], pick: Pick) -> float | None:
    found = [value for done in rounds if (value := _mean(done.accuracies, pick)) is not None]
    return mean(found) if found else None


def _mean_and_spread(values: Iterator[float]) -> Figure:
    figures = list(values)
    return Figure(mean(figures), stdev(figures) if len(figures) > 1 else None)


def _figure(values: Iterator[float | None]) -> Figure | None:
    known = [value for value in values if value is not None]
    return _mean_and_spread(iter(known)) if known else None
