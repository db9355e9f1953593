# SPDX-License-Identifier: Apache-2.0
"""The evaluated rounds of a run in its server's state, and the choice of the best one."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from splitee.durable import unreadable
from splitee.protocol.fleet import Metrics
from splitee.statistics import wilson

HISTORY = "history.jsonl"  # in a server's state: a line for each evaluated round

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Course:
    """The fleet's accuracy over the rounds.

    Attributes:
        best: figures of the best round; None: no round was evaluated on any image.
        without_better: evaluated rounds since the one with the highest accuracy.
    """

    best: Metrics | None = None
    without_improvement: int = 0


def read_history(directory: Path) -> Iterator[Metrics]:
    """The evaluated rounds in a server's state, as they were written; a torn line ends them.

    Raises StateError: they cannot be read.
    """
    return (metrics for metrics, _ in read_lines(directory / HISTORY))


def read_lines(path: Path) -> Iterator[tuple[Metrics, int]]:
    """The lines of a history, as `read_history` gives them, and the bytes of each."""
    try:
        with path.open("rb") as file:
            for line in file:
                yield msgspec.json.decode(line, type=Metrics), len(line)
    except FileNotFoundError:
        return
    except OSError as error:
        raise unreadable(path, error) from None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        log.warning("state: %s has a line that is torn (%s)", HISTORY, error)


def course(history: Iterable[Metrics], committed: int) -> Course:
    """The course of rounds 1..`committed`, by the adaptive accuracy over all held-out images of the fleet.

    The best round is the latest whose accuracy is within one standard error of the highest one (Breiman et
    al., Classification and Regression Trees, 1984): on few images the highest is a matter of chance, and
    later rounds have learnt longer. The error is that of Wilson's interval.

    Args:
        history: figures of rounds in any number; if a round was evaluated twice, the last ones count.
    """
    rounds = {metrics.round: metrics for metrics in history if metrics.round <= committed}
    best, highest, least, without_improvement = None, -1.0, 0.0, 0
    for _, metrics in sorted(rounds.items()):
        images, accuracy = metrics.fleet.images, metrics.fleet.adaptive_accuracy
        if accuracy is None:
            continue
        if accuracy > highest:
            highest, without_improvement = accuracy, 0
            least, _ = wilson(round(accuracy * images), images, z=1.0)
        else:
            without_improvement += 1
        if accuracy >= least:
            best = metrics
    return Course(best, without_improvement)
