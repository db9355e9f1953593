# SPDX-License-Identifier: Apache-2.0
"""SIGTERM, SIGINT and SIGHUP stop a process between two batches."""

from __future__ import annotations

import signal
import threading
from types import FrameType

from splitee.errors import Unwinding


class Stopped(Unwinding):
    """The process received a signal to stop."""


def stop_on_signals() -> threading.Event:
    """An event that the first signal sets; a second SIGINT interrupts as usual."""
    stop = threading.Event()

    def request_stop(_number: int, _frame: FrameType | None) -> None:
        stop.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    signal.signal(signal.SIGTERM, request_stop)
    signal.signal(signal.SIGINT, request_stop)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup sets it
        signal.signal(signal.SIGHUP, request_stop)
    return stop
