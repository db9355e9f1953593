# SPDX-License-Identifier: Apache-2.0
"""`splitee server` that also records how it spends its CPU time, by the product's own functions.

    python -m benchmarks.synthetic.measured_server NOTES BROKER_PID [--slow-trunk] server ...

At each phase that it opens, the server appends a line of JSON to NOTES with its CPU time so far. Times are
not sampled: each call of a function of SECTIONS is measured by two readings of its thread's clock (less than
a microsecond each). The speed of a shared machine may vary by a factor of two, so after every BARE_EVERY
trained batches the bare torch loop trains BARE_STEPS batches, whose time is recorded separately.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from functools import wraps
from importlib import import_module
from pathlib import Path
from typing import Any

import psutil

from benchmarks.bare_loop import BareLoop, made_up
from splitee.cli.main import main
from splitee.disk_writes import bytes_written
from splitee.mqtt.link import Link
from splitee_server.learning.fleet_model import FleetModel
from splitee_server.rounds.coordinator import Coordinator
from splitee_server.rounds.phase import Phase

SECTIONS = {  # the time of a section within another is not counted in the outer one
    "decode": ("splitee.protocol.gate:Gate.read", "splitee.protocol.cut_batch:CutBatch.of"),
    "train": ("splitee_server.learning.fleet_model:FleetModel.train",),
    "evaluate": (
        "splitee_server.learning.fleet_model:FleetModel.logits",
        "splitee_server.learning.fleet_model:FleetModel.observe",
    ),
    "acknowledge": ("splitee_server.rounds.replies:Replies.acknowledge",),
    "aggregate": ("splitee_server.learning.fleet_model:FleetModel.commit",),
    "save": ("splitee_server.rounds.commits:Commits.commit",),
    "announce": (
        "splitee_server.rounds.replies:Replies.assign",
        "splitee_server.announcer:Announcer.round",
        "splitee_server.announcer:Announcer.commit",
    ),
}
BARE_EVERY, BARE_STEPS = 60, 3
SLOW_STEPS, SLOW_SECONDS = 6, 8.0  # first batches with --slow-trunk, seconds of each


class Stopwatch:
    """CPU seconds of the calling thread, and number of calls, by section."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.calls: Counter[str] = Counter()
        self._inner = 0.0  # seconds of sections within the current one

    def timed(self, section: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def measured(*arguments: Any, **named: Any) -> Any:
            outer, self._inner = self._inner, 0.0
            started = time.thread_time()
            try:
                return function(*arguments, **named)
            finally:
                taken = time.thread_time() - started
                self.seconds[section] += taken - self._inner
                self.calls[section] += 1
                self._inner = outer + taken

        return measured

    def attach(self) -> None:
        """Measure the functions of SECTIONS. Raises KeyError: a class has no such method."""
        for section, names in SECTIONS.items():
            for name in names:
                module, _, path = name.partition(":")
                owner, _, method = path.partition(".")
                owner_class = getattr(import_module(module), owner)
                found = vars(owner_class)[method]
                if isinstance(found, classmethod):
                    setattr(owner_class, method, classmethod(self.timed(section, found.__func__)))
                else:
                    setattr(owner_class, method, self.timed(section, found))


class BarePeer:
    """Trains batches of the same size with the bare torch loop, on the server's thread.

    Attributes:
        seconds: CPU seconds so far, including those to build the loop.
        steps: training steps so far.
    """

    def __init__(self) -> None:
        self.seconds, self.steps = 0.0, 0
        self._loop: BareLoop | None = None
        self._left = BARE_EVERY

    def attach(self) -> None:
        train = FleetModel.train

        def train_and_measure_bare(model: FleetModel, *arguments: Any, **named: Any) -> float:
            loss = train(model, *arguments, **named)
            self._left -= 1
            if not self._left:
                self._train(model)
            return loss

        _replace(FleetModel, "train", train_and_measure_bare)

    def _train(self, model: FleetModel) -> None:
        started = time.thread_time()
        self._left = BARE_EVERY
        if self._loop is None:
            shapes = {cut: model.feature_shape(cut) for cut in range(1, BARE_STEPS + 1)}
            spec = model.spec
            self._loop = BareLoop(spec, {cut: made_up(spec, shape, cut) for cut, shape in shapes.items()})
        self._loop.train(BARE_STEPS)
        self.seconds += time.thread_time() - started
        self.steps += BARE_STEPS


class Notes:
    """Writes a line at each phase: CPU time, memory and counts of the process so far."""

    def __init__(self, path: Path, broker: int, stopwatch: Stopwatch, bare: BarePeer) -> None:
        self._path = path
        self._broker = psutil.Process(broker)
        self._stopwatch = stopwatch
        self._bare = bare
        self._links: list[Link] = []

    def attach(self) -> None:
        phases, open_link = Coordinator.phases, Link.open

        def phases_with_notes(coordinator: Coordinator) -> Iterator[Phase]:
            self.note("begin", 0)
            for phase in phases(coordinator):
                self.note(phase.kind, phase.opened.round)
                yield phase
            self.note("finished", coordinator.commits.round)

        def open_and_record(link: Link, *arguments: Any) -> None:
            self._links.append(link)
            open_link(link, *arguments)

        _replace(Coordinator, "phases", phases_with_notes)
        _replace(Link, "open", open_and_record)

    def note(self, phase: str, number: int) -> None:
        memory = Path("/proc/self/status").read_text().split()
        line = {
            "phase": phase,
            "round": number,
            "time": time.monotonic(),
            "cpu": time.process_time() - self._bare.seconds,
            "bare_cpu": self._bare.seconds,
            "bare_steps": self._bare.steps,
            "batches": self._stopwatch.calls["train"] + self._stopwatch.calls["evaluate"],
            "sections": {**self._stopwatch.seconds, "receive": sum(link.cpu for link in self._links)},
            "broker_cpu": _cpu_seconds(self._broker.pid),
            "broker_rss": self._broker.memory_info().rss >> 10,
            "rss": int(memory[memory.index("VmRSS:") + 1]),  # KiB, as "peak"
            "peak": int(memory[memory.index("VmHWM:") + 1]),
            "written": bytes_written(),
            "dropped": sum(link.dropped for link in self._links),
        }
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")


def _replace(owner: type, method: str, other: Callable[..., Any]) -> None:
    setattr(owner, method, other)


def _cpu_seconds(pid: int) -> float:
    """CPU seconds of a process's main thread, exact to the nanosecond: Mosquitto has one thread."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


def slow_first_steps() -> None:
    """The first SLOW_STEPS steps of the trunk take SLOW_SECONDS each, as those of a large network may."""
    train, left = FleetModel.train, [SLOW_STEPS]

    def slow_train(*arguments: Any, **named: Any) -> float:
        if left[0]:
            left[0] -= 1
            time.sleep(SLOW_SECONDS)
        return train(*arguments, **named)

    _replace(FleetModel, "train", slow_train)


if __name__ == "__main__":
    notes, broker, *words = sys.argv[1:]
    if words[0] == "--slow-trunk":
        slow_first_steps()
        del words[0]
    stopwatch = Stopwatch()
    stopwatch.attach()
    bare = BarePeer()
    bare.attach()
    Notes(Path(notes), int(broker), stopwatch, bare).attach()
    main(words)
