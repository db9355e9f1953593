# SPDX-License-Identifier: Apache-2.0
"""Runs blocking code of many devices in one process: each on its own thread, one at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable

STACK = 2 << 20  # bytes of a thread's stack; unused pages take no memory


class Killed(BaseException):
    """Ends a turn taker's function as SIGKILL would: its code must not catch it."""


class TurnTaker:
    """Runs a function until it pauses; each `resume` continues it where it paused.

    Attributes:
        error: the exception that the function has raised.
        is_killed: whether `Killed` ended it.
    """

    def __init__(self, function: Callable[[], None]) -> None:
        self._function = function
        self._go, self._back = threading.Lock(), threading.Lock()  # each is released by the other thread
        self._go.acquire()
        self._back.acquire()
        self.is_killed = self._has_ended = False
        self.error: Exception | None = None
        threading.stack_size(STACK)
        threading.Thread(target=self._run, daemon=True).start()

    @property
    def has_ended(self) -> bool:
        return self._has_ended

    def resume(self) -> None:
        """Continue the function; returns when it pauses or has ended."""
        self._go.release()
        self._back.acquire()

    def kill(self) -> None:
        """End the function where it has paused."""
        if not self._has_ended:
            self.is_killed = True
            self.resume()

    def pause(self) -> None:
        """Called by the function: return to the caller of `resume` until the next one."""
        self._back.release()
        self._go.acquire()
        if self.is_killed:
            raise Killed

    def _run(self) -> None:
        self._go.acquire()
        try:
            if not self.is_killed:
                self._function()
        except Killed:
            self.is_killed = True
        except Exception as error:
            self.error = error
        finally:
            self._has_ended = True
            self._back.release()
