# SPDX-License-Identifier: Apache-2.0
"""Blocking code of many devices in one process: each on a thread of its own, one at a time, in turns."""

from __future__ import annotations

import threading
from collections.abc import Callable

STACK = 2 << 20  # bytes of a thread's stack: what it does not use takes address space, not memory


class Killed(BaseException):
    """Ends a turn taker from within, as SIGKILL would: nothing of its own may catch it."""


class TurnTaker:
    """Runs a function until it pauses; then goes on where it paused, at each `resume`.

    Attributes:
        error: what the function has raised.
        is_killed: it was ended by `Killed`.
    """

    def __init__(self, function: Callable[[], None]) -> None:
        self._function = function
        self._go, self._back = threading.Lock(), threading.Lock()  # each is released by the other side
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
        """Give the function its turn; returns when it pauses, or has ended."""
        self._go.release()
        self._back.acquire()

    def kill(self) -> None:
        """The function gets no further than it is."""
        if not self._has_ended:
            self.is_killed = True
            self.resume()

    def pause(self) -> None:
        """Called by the function: let others go on until the next `resume`."""
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
