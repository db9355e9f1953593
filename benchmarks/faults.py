# SPDX-License-Identifier: Apache-2.0
"""Temporary faults for a benchmark's fleet, like those in the field."""

from __future__ import annotations

import random
import re
import signal
import time
from collections import Counter
from collections.abc import Callable
from datetime import datetime

from benchmarks.real_fleet import Fleet

Undo = Callable[[], object]

SHORT = 0.2, 4.0  # seconds until a fault is undone, unless DURATIONS has its kind
DURATIONS = {"black hole": (35.0, 40.0), "throttle": (15.0, 25.0), "clock": (3.0, 8.0)}
AGAIN = 2.0, 8.0  # seconds between the start of a process and its second kill
THROTTLED = 10  # packets a second
YEAR = 365 * 86400.0  # seconds
NOTICED = re.compile(r"^(\d\d:\d\d:\d\d) .*nothing came for too long", re.MULTILINE)


class Faults:
    """Injects faults, and undoes each some seconds later.

    Attributes:
        counts: number of faults by kind and target.
        noticed: seconds after which a device noticed that its network dropped all packets, for each such
            fault; None: it did not notice before the network was mended.
    """

    def __init__(self, fleet: Fleet, generator: random.Random) -> None:
        self._fleet = fleet
        self._random = generator
        self._pending: list[tuple[float, str, Undo]] = []
        self._affected: set[str] = set()  # processes that are under a fault
        self.counts: Counter[str] = Counter()
        self.noticed: list[float | None] = []

    def inject(self) -> None:
        """Inject a fault into an unaffected process, of a kind that has not occurred yet if there is one."""
        possible = [
            (kind, name)
            for name in (*self._fleet.parts, "broker")
            if name not in self._affected
            for kind in self._kinds(name)
        ]
        new = [one for one in possible if not self.counts[self._title(*one)]]
        if possible:
            self.do(*self._random.choice(new or possible))

    def do(self, kind: str, name: str) -> None:
        """Inject a fault of this kind; do nothing if the process has ended."""
        undo = self._fault(kind, name)
        if undo is None:
            return
        self.counts[self._title(kind, name)] += 1
        self._affected.add(name)
        self._later(DURATIONS.get(kind, SHORT), name, undo)

    def undo_due(self) -> None:
        """Undo the faults whose time is over."""
        now = time.monotonic()
        due = [item for item in self._pending if item[0] <= now]
        self._pending = [item for item in self._pending if item not in due]
        for _, name, undo in due:
            self._affected.discard(name)
            undo()

    def affects(self, name: str) -> bool:
        """Whether a process is under a fault that is not undone yet."""
        return name in self._affected

    def _later(self, seconds: tuple[float, float], name: str, undo: Undo) -> None:
        self._affected.add(name)
        self._pending.append((time.monotonic() + self._random.uniform(*seconds), name, undo))

    def _kinds(self, name: str) -> tuple[str, ...]:
        if name == "broker":
            return ("kill",)
        if name == "server":
            return "kill", "kill twice", "power", "freeze", "clock"
        throttle = ("throttle",) if name in self._fleet.throttles else ()
        isolated = ("network", "black hole") if self._fleet.networks[name].kind != "none" else ()
        return "kill", "power", "freeze", "clock", *isolated, *throttle

    @staticmethod
    def _title(kind: str, name: str) -> str:
        return f"{kind} {name if name in ('broker', 'server') else 'device'}"

    def _fault(self, kind: str, name: str) -> Undo | None:
        if name == "broker":
            self._fleet.broker.kill()
            return self._fleet.broker.start
        process = self._fleet.parts[name].process
        if process is None or process.poll() is not None:
            return None
        faults: dict[str, Callable[[str], Undo]] = {
            "network": self._cut,
            "black hole": self._black_hole,
            "throttle": self._throttle,
            "freeze": self._freeze,
            "clock": self._set_clock,
            "kill": self._kill,
            "kill twice": self._kill_twice,
            "power": self._power,
        }
        return faults[kind](name)

    def _kill(self, name: str) -> Undo:
        self._fleet.kill(name)
        return lambda: self._fleet.start(name)

    def _power(self, name: str) -> Undo:
        start = self._kill(name)
        self._fleet.tear_newest_state(name)
        return start

    def _kill_twice(self, name: str) -> Undo:
        self._fleet.kill(name)
        return lambda: self._kill_again(name)

    def _freeze(self, name: str) -> Undo:
        process = self._fleet.parts[name].process
        assert process is not None
        process.send_signal(signal.SIGSTOP)
        return lambda: process.send_signal(signal.SIGCONT)

    def _set_clock(self, name: str) -> Undo:
        self._fleet.set_clock(name, self._random.choice((-YEAR, YEAR)))
        return lambda: self._fleet.set_clock(name, 0)

    def _cut(self, name: str) -> Undo:
        self._fleet.networks[name].cut()
        return self._fleet.networks[name].mend

    def _kill_again(self, name: str) -> None:
        """Start the process, and kill it again some seconds later."""
        self._fleet.start(name)

        def second() -> None:
            self._fleet.kill(name)
            self._later(SHORT, name, lambda: self._fleet.start(name))

        self._later(AGAIN, name, second)

    def _throttle(self, name: str) -> Undo:
        proxy = self._fleet.throttles[name]
        proxy.rate = THROTTLED

        def lift() -> None:
            proxy.rate = 0

        return lift

    def _black_hole(self, name: str) -> Undo:
        began, log = datetime.now(), self._fleet.log(name)
        start = log.stat().st_size
        self._fleet.networks[name].cut()

        def mend() -> None:
            self._fleet.networks[name].mend()
            found = NOTICED.search(log.read_bytes()[start:].decode(errors="replace"))
            self.noticed.append(_seconds_since(began, found[1]) if found else None)

        return mend


def _seconds_since(began: datetime, clock: str) -> float:
    """Seconds from `began` to the time of day `clock` of a log line, less than a day later."""
    noticed = datetime.combine(began.date(), datetime.strptime(clock, "%H:%M:%S").time())
    return (noticed - began).total_seconds() % 86400
