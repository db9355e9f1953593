# SPDX-License-Identifier: Apache-2.0
"""Displays of a running demo: bars on a terminal, or a line per round in a log."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Protocol, TypeVar

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from splitee.cli.words import images, megabytes, percent
from splitee.protocol.fleet_view import FleetSnapshot
from splitee_lab.demo.state import BaselineRow, DemoState, DeviceRow
from splitee_lab.demo.workload import Workload
from splitee_lab.methods.baselines import Progress

Row = TypeVar("Row")
NARROWEST, WIDEST = 6, 32  # bars
AROUND = 7  # lines of a display beside its rows, and the cursor's
LEAST_ROWS = 4


class Display(Protocol):
    """Receives a demo's progress."""

    def begin(self, state: DemoState) -> None: ...

    def fleet(self, snapshot: FleetSnapshot) -> None: ...

    def expect(self, workload: Workload) -> None: ...

    def predicted(self, done: float) -> None: ...

    def baseline(self, progress: Progress) -> None: ...


def open_display(console: Console) -> AbstractContextManager[Display]:
    return LiveDisplay(console) if console.is_terminal else LineDisplay(console)


class LineDisplay:
    """Prints a line when a part begins, and for each round and each baseline."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._state: DemoState | None = None
        self._round = 0
        self._last_printed = ""

    def __enter__(self) -> Display:
        return self

    def __exit__(self, *_error: object) -> None:
        pass

    def begin(self, state: DemoState) -> None:
        self._state = state

    def fleet(self, snapshot: FleetSnapshot) -> None:
        state, metrics = self._open, snapshot.metrics
        state.fleet(snapshot)
        self._print_new_part()
        if metrics is None or metrics.round <= self._round:
            return
        self._round = metrics.round
        results = "; ".join(
            f"{device} exit {percent(found.exit_accuracy)} trunk {percent(found.trunk_accuracy)} "
            f"of {images(found.held_out_samples)}"
            for device, found in metrics.devices.items()
        )
        sent = megabytes(sum(found.bytes for found in metrics.devices.values()))
        self._print(
            f"round {metrics.round} of {metrics.rounds}: {results}; {sent} MB, {metrics.seconds:.0f} s; "
            f"{state.end}"
        )

    def expect(self, workload: Workload) -> None:
        self._open.expect(workload)

    def predicted(self, done: float) -> None:
        self._open.predicted(done)
        self._print_new_part()

    def baseline(self, progress: Progress) -> None:
        self._open.baseline(progress)
        if progress.accuracy is not None:
            self._print(f"baseline {progress.name}: {percent(progress.accuracy)}")

    def _print_new_part(self) -> None:
        """Print what is being done if its text has changed before the first figure."""
        begun = self._open.now.partition(":")[0].partition(",")[0]
        if begun != self._last_printed:
            self._last_printed = begun
            self._print(self._open.now)

    @property
    def _open(self) -> DemoState:
        assert self._state is not None, "it begins first"
        return self._state

    def _print(self, line: str) -> None:
        self._console.print(line, soft_wrap=True, markup=False, highlight=False)


class LiveDisplay:
    """A row per device and per baseline, drawn again at each update."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._state: DemoState | None = None
        self._live = Live(console=console, refresh_per_second=4, get_renderable=self._render)

    def __enter__(self) -> Display:
        self._live.start(refresh=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def begin(self, state: DemoState) -> None:
        self._state = state

    def fleet(self, snapshot: FleetSnapshot) -> None:
        self._open.fleet(snapshot)

    def expect(self, workload: Workload) -> None:
        self._open.expect(workload)

    def predicted(self, done: float) -> None:
        self._open.predicted(done)

    def baseline(self, progress: Progress) -> None:
        self._open.baseline(progress)

    @property
    def _open(self) -> DemoState:
        assert self._state is not None, "it begins first"
        return self._state

    def _render(self) -> RenderableType:
        return Text("starting", "dim") if self._state is None else render(self._state, self._console)


def render(state: DemoState, console: Console) -> RenderableType:
    """The demo's state as it is now, within the console's width and height."""
    room = max(console.height - AROUND, 2 * LEAST_ROWS)
    baselines = [row for row in state.baselines.values() if row.done]
    for_devices = max(min(len(state.devices), room - len(baselines)), LEAST_ROWS)
    parts: list[RenderableType] = [Text(state.now), Text(state.end, "dim"), Text()]
    parts += _devices(state, for_devices, console.width)
    if baselines:
        parts += [Text(), *_baselines(baselines, room - min(for_devices, len(state.devices)), console.width)]
    return Group(*parts)


def _devices(state: DemoState, room: int, width: int) -> list[RenderableType]:
    table = _table("device", "", "round", "loss", "exit", "trunk", "sent")
    rows, more = _fitting(list(state.devices.values()), room)
    bar = _bar_width(width, [row.id for row in rows], 50)
    for row in rows:
        total, done = float(state.rounds), row.done
        if state.is_measuring and row.cut is None:
            total, done = state.measuring, state.measured_for
        table.add_row(
            Text(row.id), ProgressBar(total, done, width=bar), *map(Text, _device_cells(row, state))
        )
    return [table, *more]


def _device_cells(row: DeviceRow, state: DemoState) -> tuple[str, ...]:
    under_way = min(int(row.done) + 1, state.rounds)
    return (
        f"{under_way} of {state.rounds}" if row.done else "-",
        "-" if row.loss is None else f"{row.loss:.3f}",
        percent(row.exit),
        percent(row.trunk),
        f"{megabytes(row.bytes)} MB" if row.bytes else "-",
    )


def _baselines(baselines: Sequence[BaselineRow], room: int, width: int) -> list[RenderableType]:
    """Running baselines before finished ones, which the final table shows."""
    table = _table("baseline", "", "loss", "accuracy")
    rows, more = _fitting(sorted(baselines, key=lambda row: row.accuracy is not None), max(room, LEAST_ROWS))
    bar = _bar_width(width, [row.name for row in rows], 20)
    for row in rows:
        loss = "-" if row.loss is None else f"{row.loss:.3f}"
        table.add_row(
            Text(row.name), ProgressBar(1.0, row.done, width=bar), Text(loss), Text(percent(row.accuracy))
        )
    return [table, *more]


def _table(name: str, *columns: str) -> Table:
    table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(name, overflow="fold")
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _bar_width(width: int, names: Sequence[str], others: int) -> int:
    """The width that a line leaves. `others`: width of all columns beside name and bar."""
    return max(NARROWEST, min(WIDEST, width - others - max(map(len, names)) - 2))


def _fitting(rows: list[Row], room: int) -> tuple[list[Row], list[RenderableType]]:
    """As many rows as fit, and a line for the others."""
    if len(rows) <= room:
        return rows, []
    shown = rows[: room - 1]
    return shown, [Text(f"and {len(rows) - len(shown)} more", "dim")]
