# SPDX-License-Identifier: Apache-2.0
"""Jobs of worker processes, which import them by name."""

from __future__ import annotations

import os
import signal
import struct
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection

import torch


@dataclass(frozen=True)
class Count:
    to: int

    @property
    def title(self) -> str:
        return f"count to {self.to}"


def count(job: Count, report: Callable[[int], None]) -> None:
    for number in range(1, job.to + 1):
        report(number)
    if job.to < 0:
        os._exit(3)


def threads(job: Count, report: Callable[[int], None]) -> None:
    report(torch.get_num_threads())


def count_through_an_interrupt(job: Count, report: Callable[[int], None]) -> None:
    os.kill(os.getpid(), signal.SIGINT)
    count(job, report)


def die_within_a_message(job: Count, report: Callable[[int], None]) -> None:
    pipe: Connection = report.__self__  # type: ignore[attr-defined]
    os.write(pipe.fileno(), struct.pack("!i", 100) + b"the rest never comes")
    os._exit(3)
