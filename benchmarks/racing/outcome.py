# SPDX-License-Identifier: Apache-2.0
"""The result of a race: a method's evaluated rounds, its time and device CPU to the target, the bounds."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

FASTER = 3.0  # times, to the target, than Flower's FedAvg
MOST_CPU = 0.45  # of its device CPU seconds

Seconds = dict[str, float]  # by device


@dataclass(frozen=True)
class Round:
    """An evaluated round.

    Attributes:
        seconds: from the start of the devices until its network was there (Flower), or was evaluated (ours).
        accuracy: share of the held-out images that the whole network (ours: the trunk) gets right.
        cpu: seconds of CPU that each device, with all that it has started, had taken by then.
        sent: bytes of features, labels and weights that the devices had sent by then.
        adaptive: accuracy where the exit predicts up to the threshold, and the trunk above it.
        server_cpu: seconds of CPU that the server had taken by then, which nobody holds to a share.
        training: seconds of CPU of `cpu` that went into training steps, where they were told apart.
        training_seconds: what the training of the slowest device of each round took, where it was told.
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
"""Of a method that runs: the seconds after which its first round was opened, then each evaluated round.

None: nothing new. It goes on for ever; closing it ends the method.
"""


@dataclass(frozen=True)
class Outcome:
    """How far a method came.

    Attributes:
        ended: why no more rounds were waited for: target, rounds or limit.
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
        """The round that counts: the first that reached the target, else the last."""
        return self.winning or (self.rounds[-1] if self.rounds else None)

    def record(self) -> dict[str, Any]:
        """For JSON."""
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
    """A figure that must be at least, or at most, `bound`; None: it could not be taken."""

    name: str
    bound: float
    figure: float | None
    met: bool


def bounds(ours: Outcome, theirs: Outcome) -> list[Bound]:
    """Time and device CPU to the target; of `theirs`, if it did not reach it, by its last round."""
    won, last = ours.winning, theirs.last
    if won is None or last is None:
        return [Bound("times faster", FASTER, None, False), Bound("of its device CPU", MOST_CPU, None, False)]
    faster, cpu = last.seconds / won.seconds, won.device_cpu / last.device_cpu
    return [
        Bound("times faster", FASTER, faster, faster >= FASTER),
        Bound("of its device CPU", MOST_CPU, cpu, cpu <= MOST_CPU),
    ]


def ended(rounds: Sequence[Round], target: float, wanted: int) -> str | None:
    """Why a method needs no more time, or None: it goes on."""
    if not rounds:
        return None
    if rounds[-1].accuracy >= target:
        return "target"
    return "rounds" if rounds[-1].number >= wanted else None
