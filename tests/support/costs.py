# SPDX-License-Identifier: Apache-2.0
"""A pytest plugin that measures the cost of each test: `make test-costs` writes the table.

Wall and CPU seconds are of setup, test and teardown together; shared fixtures count for their first test.
The CPU time of children, with that of their own children, counts once they are waited for. It lacks a demo's
fork server, which ends after the demo.
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


class Cost(NamedTuple):
    """Cost of a test: wall seconds, CPU seconds of this process and of its children, processes started."""

    wall: float
    own: float
    children: float
    started: float


class Meter:
    """Measures the cost so far of this process."""

    def __init__(self) -> None:
        self._started = 0
        sys.addaudithook(self._count_start)

    def read(self) -> Cost:
        own, children = (
            resource.getrusage(processes) for processes in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        )
        return Cost(
            time.perf_counter(),
            own.ru_utime + own.ru_stime,
            children.ru_utime + children.ru_stime + warm.children_cpu(),
            self._started,
        )

    def _count_start(self, event: str, _arguments: tuple[Any, ...]) -> None:
        if event in STARTS:
            self._started += 1


def pytest_addoption(parser: pytest.Parser) -> None:
    help_text = "Write the cost of each test, with tabs between columns."
    parser.addoption("--costs", type=Path, metavar="FILE", help=help_text)


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--costs"):
        config.pluginmanager.register(Costs(config.getoption("--costs")), "costs-table")


class Costs:
    """Workers measure the costs; the reports take them to the controller, which writes the table."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._meter = Meter()
        self._costs: dict[str, Cost] = {}

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
        for name, cost in report.user_properties:
            if name == KEY and report.when == "teardown":
                self._costs[report.nodeid] = Cost(*cost)

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        rows = sorted(self._costs.items(), key=lambda row: -row[1].wall)
        if not rows:
            return
        line = "{0}\t{1.wall:.2f}\t{1.own:.2f}\t{1.children:.2f}\t{1.started:.0f}\n"
        table = "test\twall\town cpu\tchildren cpu\tstarted\n"
        self._file.write_text(table + "".join(line.format(test, cost) for test, cost in rows))
        terminalreporter.section(f"the {SLOWEST} slowest of {len(rows)} tests; all are in {self._file}")
        shown = "{1.wall:8.1f} s {1.own:7.1f} {1.children:7.1f} CPU s {1.started:4.0f} started  {0}"
        total = Cost(*(sum(column) for column in zip(*self._costs.values(), strict=True)))
        for test, cost in [*rows[:SLOWEST], ("all", total)]:
            terminalreporter.write_line(shown.format(test, cost))
