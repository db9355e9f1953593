# SPDX-License-Identifier: Apache-2.0
"""A pytest plugin that tells what each test costs: `make test-costs` writes the table.

Wall and CPU seconds are of setup, test and teardown together; what tests share is on the bill of the first.
Children's CPU counts once they are waited for, with all that they started and waited for: not the fork
server of a demo, which ends after it.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import warm

KEY = "costs"
STARTS = ("subprocess.Popen", "os.fork", "os.posix_spawn", "os.forkpty", warm.FORK)
SLOWEST = 40  # tests in the terminal's table


class Bill(NamedTuple):
    """One test: seconds, CPU seconds in this process and in its children, processes started."""

    wall: float
    own: float
    children: float
    started: float


class Meter:
    """What this process has used so far."""

    def __init__(self) -> None:
        self._started = 0
        sys.addaudithook(self._count_start)

    def read(self) -> Bill:
        own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        return Bill(
            time.perf_counter(),
            own.ru_utime + own.ru_stime,
            children.ru_utime + children.ru_stime + warm.children_cpu(),
            self._started,
        )

    def _count_start(self, event: str, _arguments: tuple[Any, ...]) -> None:
        if event in STARTS:
            self._started += 1


def pytest_addoption(parser: pytest.Parser) -> None:
    help_text = "Write what each test costs, a tab between columns."
    parser.addoption("--costs", type=Path, metavar="FILE", help=help_text)


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--costs"):
        config.pluginmanager.register(Costs(config.getoption("--costs")), "costs-table")


class Costs:
    """A worker makes the bills, which travel with the reports to the controller; that shows them."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._meter = Meter()
        self._bills: dict[str, Bill] = {}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, Any, Any]:
        self._before = self._meter.read()
        return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, Any, Any]:
        report = yield
        if call.when == "teardown":
            now = self._meter.read()
            used = [after - before for after, before in zip(now, self._before, strict=True)]
            report.user_properties.append((KEY, used))
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        for name, bill in report.user_properties:
            if name == KEY and report.when == "teardown":
                self._bills[report.nodeid] = Bill(*bill)

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        rows = sorted(self._bills.items(), key=lambda row: -row[1].wall)
        if not rows:
            return
        line = "{0}\t{1.wall:.2f}\t{1.own:.2f}\t{1.children:.2f}\t{1.started:.0f}\n"
        table = "test\twall\town cpu\tchildren cpu\tstarted\n"
        self._file.write_text(table + "".join(line.format(test, bill) for test, bill in rows))
        terminalreporter.section(f"the {SLOWEST} slowest of {len(rows)} tests; all are in {self._file}")
        shown = "{1.wall:8.1f} s {1.own:7.1f} {1.children:7.1f} CPU s {1.started:4.0f} started  {0}"
        total = Bill(*(sum(column) for column in zip(*self._bills.values(), strict=True)))
        for test, bill in [*rows[:SLOWEST], ("all", total)]:
            terminalreporter.write_line(shown.format(test, bill))
