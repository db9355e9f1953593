# SPDX-License-Identifier: Apache-2.0
"""SIGTERM, SIGINT and SIGHUP stop a process between two batches."""

from __future__ import annotations

import signal
import threading
from types import FrameType

from splitee.errors import Unwinding


class Stopped(Unwinding):
    """The process was asked to stop."""


def stop_on_signals() -> threading.Event:
    """An event that the first signal sets; a second SIGINT interrupts as usual."""
    stop = threading.Event()

    def ask(_number: int, _frame: FrameType | None) -> None:
        stop.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    signal.signal(signal.SIGTERM, ask)
    signal.signal(signal.SIGINT, ask)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup has asked for
        signal.signal(signal.SIGHUP, ask)
    return stop
