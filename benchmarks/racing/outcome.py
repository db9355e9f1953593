# SPDX-License-Identifier: Apache-2.0
"""The result of a race: a method's evaluated rounds, its time and CPU seconds to the target, the bounds."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

FASTER = 3.0  # lower bound: FedAvg's time to the target divided by ours
MOST_CPU = 0.45  # upper bound: our device CPU seconds to the target divided by FedAvg's

Seconds = dict[str, float]  # by device


@dataclass(frozen=True)
class Round:
    """An evaluated round.

    Attributes:
        seconds: from the start of the devices until its network was aggregated (Flower) or evaluated (ours).
        accuracy: share of the held-out images that the whole network (ours: the trunk) predicts correctly.
        cpu: CPU seconds so far of each device, with its child processes.
        sent: bytes that the devices have sent so far: of weights (Flower), or of all payloads (ours).
        adaptive: accuracy if the exit predicts up to the threshold, and the trunk above it.
        server_cpu: CPU seconds so far of the server, whose CPU is not limited.
        training: CPU seconds of `cpu` that were spent on training; None: unknown.
        training_seconds: sum over rounds of the slowest device's seconds of training; None: unknown.
    """

    number: int
    seconds: float
    accuracy: float
    cpu: Seconds
    sent: int
    server_cpu: float
    adaptive: float | None = None
    training: float | None = None
    training_seconds: float | None = None

    @property
    def device_cpu(self) -> float:
        return sum(self.cpu.values())


Followed = Generator[Round | float | None, None, None]
"""The events of a running method: seconds until its first round was opened, then each evaluated round.

None: no event yet. The generator never ends by itself; closing it ends the method.
"""


@dataclass(frozen=True)
class Outcome:
    """The result of one method.

    Attributes:
        ended: why the method was ended: target, rounds or limit.
        first_round: seconds from the start of the devices until the first round was opened.
    """

    method: str
    target: float
    rounds: tuple[Round, ...]
    ended: str
    first_round: float | None = None

    @property
    def winning(self) -> Round | None:
        """The first round that reached the target."""
        return next((one for one in self.rounds if one.accuracy >= self.target), None)

    @property
    def last(self) -> Round | None:
        """The round that is compared: the first that reached the target, else the last."""
        return self.winning or (self.rounds[-1] if self.rounds else None)

    def record(self) -> dict[str, Any]:
        """The outcome as a JSON object."""
        won, last = self.winning, self.last
        return {
            "benchmark": "race",
            "method": self.method,
            "target": self.target,
            "reached": won is not None,
            "ended": self.ended,
            "round": last and last.number,
            "accuracy": last and last.accuracy,
            "adaptive_accuracy": last and last.adaptive,
            "seconds": last and round(last.seconds, 1),
            "device_cpu_seconds": last and round(last.device_cpu, 1),
            "server_cpu_seconds": last and round(last.server_cpu, 1),
            "bytes_sent_by_devices": last and last.sent,
            "seconds_before_first_round": self.first_round and round(self.first_round, 1),
            "rounds": [asdict(one) for one in self.rounds],
        }


@dataclass(frozen=True)
class Bound:
    """A figure that must be at least, or at most, `bound`. `figure` None: it could not be measured."""

    name: str
    bound: float
    figure: float | None
    met: bool


def bounds(ours: Outcome, theirs: Outcome) -> list[Bound]:
    """Ratios of time and device CPU seconds to the target; to its last round if `theirs` did not reach it."""
    won, last = ours.winning, theirs.last
    if won is None or last is None:
        return [Bound("times faster", FASTER, None, False), Bound("of its device CPU", MOST_CPU, None, False)]
    faster, cpu = last.seconds / won.seconds, won.device_cpu / last.device_cpu
    return [
        Bound("times faster", FASTER, faster, faster >= FASTER),
        Bound("of its device CPU", MOST_CPU, cpu, cpu <= MOST_CPU),
    ]


def ended(rounds: Sequence[Round], target: float, total: int) -> str | None:
    """Why a method is done, target or rounds; None: it continues."""
    if not rounds:
        return None
    if rounds[-1].accuracy >= target:
        return "target"
    return "rounds" if rounds[-1].number >= total else None
