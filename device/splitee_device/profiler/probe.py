# SPDX-License-Identifier: Apache-2.0
"""Measures cuts within a time budget: chooses which ones, in which order, for the worker of worker.py."""

from __future__ import annotations

import logging
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import accumulate
from types import TracebackType

from msgspec.structs import replace

from splitee.errors import ChildFailed, NetworkError, NoCutFits
from splitee.protocol.run_spec import RunSpec
from splitee_device.machine.hardware import available_memory, least, memory_for_training, usable_cores
from splitee_device.profiler.cost_model import predicted_memory
from splitee_device.profiler.costs import (
    CutCosts,
    Description,
    Failed,
    MeasureCut,
    Measured,
    Reply,
    Setup,
    at_mean_speed,
)

LEAST_STEPS = 5  # timed by the worker
ENDLESS = 1_000_000  # rounds and steps: a measurement ends by time
OTHER_STEPS = 8  # in addition: warm-up, evaluation, the stages one by one
SECONDS = 1.0  # of timed steps per measurement
BURSTY_SECONDS = 3.0  # 30 periods of the usual quota
TICK = 0.5  # seconds

log = logging.getLogger(__name__)


class MemoryTooSmall(NoCutFits):
    """Not even Python with torch fits."""


class Probe:
    """The worker process: started at the first request, restarted if it dies, and ended on exit."""

    def __init__(self, setup: Setup, deadline: float, tick: Callable[[], None]) -> None:
        """`deadline`: of all replies, by time.monotonic. `tick` is called twice a second, and may raise."""
        self._setup = setup
        self._deadline = deadline
        self._tick = tick
        self._buffer = b""
        self._worker: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Probe:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._worker is not None:
            self._end(self._worker)

    def describe(self) -> Description:
        """The network's stages.

        Raises:
            NetworkError: there is no such network, or it does not fit its input.
            MemoryTooSmall: the worker was killed before it could reply.
            TimeoutError: the deadline has passed.
        """
        reply = self._start()
        if reply.description is None:
            raise _no_description(reply.failed)
        return reply.description

    def measure(self, request: MeasureCut) -> CutCosts | Failed:
        """The costs of training at the cut, or why it could not be tried.

        Raises:
            TimeoutError: the deadline has passed.
            ChildFailed: the worker has a defect.
        """
        if self._worker is None and (failed := self._start().failed) is not None:
            reply = Reply(failed=failed)  # it ended before the request
        else:
            reply = self._request(request.encode())
        if reply.costs is not None:
            return reply.costs
        assert reply.failed is not None
        if reply.failed.defect:
            raise ChildFailed(f"measuring cut {request.cut}: the worker {reply.failed.message}, see above")
        return reply.failed

    def _start(self) -> Reply:
        self._worker = subprocess.Popen(
            [sys.executable, "-m", "splitee_device.profiler.worker"],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            start_new_session=True,
        )
        return self._request(self._setup.encode())

    def _request(self, line: bytes) -> Reply:
        worker = self._worker
        assert worker is not None and worker.stdin is not None and worker.stdout is not None
        try:
            worker.stdin.write(line + b"\n")
            return Reply.decode(self._read_line(worker.stdout.fileno()))
        except (BrokenPipeError, EOFError):
            code = self._end(worker)
            return Reply(
                failed=Failed(
                    message="ran out of memory" if code < 0 else f"ended with status {code}",
                    killed=code < 0,
                    defect=code >= 0,
                )
            )

    def _end(self, worker: subprocess.Popen[bytes]) -> int:
        """Ends the worker and all its forks; returns its exit status."""
        self._worker, self._buffer = None, b""
        code = worker.poll()
        with suppress(ProcessLookupError):
            os.killpg(worker.pid, signal.SIGKILL)
        for pipe in (worker.stdin, worker.stdout):
            assert pipe is not None
            pipe.close()
        return worker.wait() if code is None else code

    def _read_line(self, output: int) -> bytes:
        with selectors.DefaultSelector() as selector:
            selector.register(output, selectors.EVENT_READ)
            while b"\n" not in self._buffer:
                left = self._deadline - time.monotonic()
                if left <= 0:
                    raise TimeoutError
                if selector.select(min(left, TICK)):
                    data = os.read(output, 1 << 16)
                    if not data:
                        raise EOFError
                    self._buffer += data
                self._tick()
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line


def _no_description(failed: Failed | None) -> Exception:
    assert failed is not None
    if failed.killed:
        return MemoryTooSmall(
            "Python with torch does not fit into the memory that this device leaves it: "
            "free memory, raise the limit, or let it only infer (`splitee predict` needs no torch)"
        )
    if failed.defect:
        return ChildFailed(f"measuring: the worker {failed.message}, see above")
    return NetworkError(failed.message)


class Plan:
    """Which cut to measure next: the first, the deepest that may fit, then the middle of the widest gap.

    When all are measured, each is measured once more, while half of the time lasts. The device's other load
    changes, so two moments tell more than one.
    """

    def __init__(
        self, spec: RunSpec, description: Description, available: int | None, seconds: float, deadline: float
    ) -> None:
        """`available`: bytes of memory now, beside this process. `seconds`: of timed steps per measurement.

        `deadline`: by time.monotonic.
        """
        self.failed: dict[int, Failed] = {}
        self._measurements: dict[int, list[CutCosts]] = {}
        self._spec = spec
        self.description = description
        self._available = available
        self._seconds = seconds
        self._deadline = deadline
        self._half_time = (time.monotonic() + deadline) / 2
        self._macs = list(accumulate((stage.macs for stage in description.stages), initial=0))

    @property
    def costs(self) -> dict[int, CutCosts]:
        """The costs by cut, of those that were measured."""
        return at_mean_speed(self._measurements) if self._measurements else {}

    def next(self) -> MeasureCut | None:
        """The next request; None: all are measured, or no remaining one fits the time."""
        left = self._deadline - time.monotonic()
        for cut in self._candidates():
            if not self._measurements or self._expected(cut) < left:
                deepest = bool(self._measurements) and cut > max(self._measurements)
                return MeasureCut(cut=cut, seconds=self._seconds, most=left / 2, stages=deepest)
        for cut, measurements in self._measurements.items():
            if len(measurements) == 1 and self._expected(cut) < self._half_time - time.monotonic():
                return MeasureCut(cut=cut, seconds=self._seconds, most=left / 2)
        return None

    def take(self, request: MeasureCut, result: CutCosts | Failed) -> None:
        if isinstance(result, CutCosts):
            self._measurements.setdefault(request.cut, []).append(result)
        else:
            self.failed[request.cut] = result
            self._measurements.pop(request.cut, None)

    def _candidates(self) -> list[int]:
        """Cuts in the order of the information that they would give."""
        killed = [cut for cut, failed in self.failed.items() if failed.killed]
        last = min([len(self.description.stages), *killed]) - 1
        open_cuts = [
            cut for cut in range(1, last + 1) if cut not in self._measurements and cut not in self.failed
        ]
        if not self._measurements:
            return open_cuts[:1]
        beyond = [cut for cut in open_cuts if cut > max(self._measurements) and self._may_fit(cut)]
        between = [cut for cut in open_cuts if cut < max(self._measurements)]
        return [*reversed(beyond), *sorted(between, key=self._distance, reverse=True)]

    def _distance(self, cut: int) -> int:
        """Multiply-accumulates to the nearest measured cut."""
        return min(abs(self._macs[cut] - self._macs[known]) for known in self._measurements)

    def _may_fit(self, cut: int) -> bool:
        if self._available is None:
            return True
        known = self.costs
        needed = predicted_memory(self._spec, self.description, known, cut)
        code = max(costs.code for costs in known.values())
        return self.description.base_memory + needed + code <= self._available

    def _expected(self, cut: int) -> float:
        """Expected seconds of a measurement, from the nearest one; its steps grow with the work."""
        nearest = self._measurements[min(self._measurements, key=lambda known: abs(known - cut))][0]
        step = nearest.step * max(self._macs[cut] / max(self._macs[nearest.cut], 1), 0.1)
        rest = max(nearest.seconds - (nearest.steps + OTHER_STEPS) * nearest.step, 0)
        return rest + OTHER_STEPS * step + max(self._seconds, LEAST_STEPS * step)


def measure_cuts(
    spec: RunSpec,
    *,
    threads: int,
    budget: float,
    memory: int | None = None,
    progress: Callable[[str], None] = lambda _: None,
    tick: Callable[[], None] = lambda: None,
) -> Measured:
    """Measure as many cuts as `budget` seconds allow.

    Args:
        memory: bytes that training may use; cuts that need more are not tried. None: all that is available.
        progress: receives a description of the current step.
        tick: is called twice a second; if it raises, the measurement ends.

    Raises:
        NoCutFits: the budget is too short for one measurement, which may be another time on a busy device.
        NetworkError: there is no such network, or it does not fit its input.
        MemoryTooSmall: not even torch fits.
    """
    started = time.monotonic()
    spec = replace(spec, rounds=ENDLESS, steps=ENDLESS)
    cores, available, free = (
        usable_cores(),
        memory_for_training(),
        least(memory, available_memory().available),
    )
    bursty = cores < threads
    plan = None
    with Probe(Setup(spec=spec, threads=threads, bursty=bursty), started + budget, tick) as probe:
        try:
            progress("importing torch")
            description = probe.describe()
            seconds = BURSTY_SECONDS if bursty else SECONDS
            plan = Plan(spec, description, free, seconds, started + budget)
            while (request := plan.next()) is not None:
                progress(f"cut {request.cut}, {description.stages[request.cut - 1].name}")
                plan.take(request, probe.measure(request))
        except TimeoutError:
            log.debug("the budget of %.0f s is spent", budget)
    if plan is None or not (plan.costs or plan.failed):
        raise NoCutFits(
            f"--budget {budget:g} seconds are too short for one measurement: give several times as much"
        )
    return Measured(
        spec=spec,
        threads=threads,
        cores=cores,
        available=available,
        description=plan.description,
        costs=dict(sorted(plan.costs.items())),
        failed={cut: failed.message for cut, failed in sorted(plan.failed.items())},
        seconds=time.monotonic() - started,
    )
