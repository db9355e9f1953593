# SPDX-License-Identifier: Apache-2.0
"""Jobs in processes of one thread each: as many at once as there are cores, none left behind."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Generic, Protocol, TypeVar

from splitee.errors import ChildFailed, SpliteeError
from splitee.training.process import prepare_to_train
from splitee_lab.local.forked import CONTEXT, start


class Titled(Protocol):
    """A job; its title names it in an error, such as "baseline 'pi-1'"."""

    @property
    def title(self) -> str: ...


Job = TypeVar("Job", bound=Titled)
News = TypeVar("News")
Work = Callable[[Job, Callable[[News], None]], None]


class _Done:
    """The last message about a job."""


class _Failed:
    """The last message about a job that failed by a mistake of the user."""

    def __init__(self, line: str) -> None:
        self.line = line


@contextmanager
def run_in_workers(
    jobs: Sequence[Job], work: Work[Job, News], workers: int
) -> Iterator[Iterator[tuple[Job, News]]]:
    """The updates that `work(job, report)` reports, until all are done; leaving ends the processes.

    Each process has one thread: two of them train more images per second on two cores than one with two
    threads, and the result does not depend on the number of cores. `work` and jobs are pickled.

    Raises:
        ChildFailed: a job met an error, or its process ended before its result.
    """
    pool: _WorkerPool[Job, News] = _WorkerPool(work, min(workers, len(jobs)))
    try:
        yield pool.updates(deque(jobs))
    finally:
        pool.end()


class _WorkerPool(Generic[Job, News]):
    """Processes that do one job after the other and send their progress."""

    def __init__(self, work: Work[Job, News], count: int) -> None:
        self._processes: dict[Connection, BaseProcess] = {}
        self._busy: dict[Connection, Job] = {}
        for _ in range(count):
            parent_end, child_end = CONTEXT.Pipe()
            self._processes[parent_end] = start(_work, child_end, work, daemon=True)
            child_end.close()

    def updates(self, waiting: deque[Job]) -> Iterator[tuple[Job, News]]:
        while waiting or self._busy:
            for connection in self._processes:
                if waiting and connection not in self._busy:
                    self._busy[connection] = waiting.popleft()
                    connection.send(self._busy[connection])
            ready = wait(list(self._busy))
            for connection in [busy for busy in self._busy if busy in ready]:
                yield from self._receive(connection)

    def end(self) -> None:
        for connection, process in self._processes.items():
            process.terminate()
            process.join()
            connection.close()

    def _receive(self, connection: Connection) -> Iterator[tuple[Job, News]]:
        job = self._busy[connection]
        try:
            message: Any = connection.recv()
        except (EOFError, OSError):  # at a message's end, or within one
            process = self._processes[connection]
            process.join()
            raise ChildFailed(
                f"the {job.title} ended with status {process.exitcode} before its result; "
                "the others are stopped"
            ) from None
        if isinstance(message, _Failed):
            raise ChildFailed(f"the {job.title} failed, the others are stopped: {message.line}")
        if isinstance(message, _Done):
            del self._busy[connection]
        else:
            yield job, message


def _work(connection: Connection, work: Work[Job, News]) -> None:
    prepare_to_train(1)
    while True:
        try:
            job: Job = connection.recv()
        except EOFError:
            return
        try:
            work(job, connection.send)
        except SpliteeError as error:
            connection.send(_Failed(str(error)))
            return
        connection.send(_Done())
