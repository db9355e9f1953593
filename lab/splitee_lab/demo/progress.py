"""How a demo shows itself while it runs: bars on a terminal, a line a round in a log."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, ProgressColumn, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.text import Text

from splitee.cli.accuracy_words import accuracies_in_words
from splitee.cli.words import images, megabytes, percent
from splitee.protocol.fleet_view import DeviceView, FleetSnapshot
from splitee_lab.methods.baselines import Progress


class Display(Protocol):
    """What is told of a demo's course."""

    def fleet(self, snapshot: FleetSnapshot) -> None: ...

    def baseline(self, progress: Progress) -> None: ...


def open_display(console: Console) -> AbstractContextManager[Display]:
    return LiveDisplay(console) if console.is_terminal else LineDisplay(console)


class LineDisplay:
    """One line when the devices have joined, one a round, one a baseline."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._round = -1

    def __enter__(self) -> Display:
        return self

    def __exit__(self, *_error: object) -> None:
        pass

    def fleet(self, snapshot: FleetSnapshot) -> None:
        metrics = snapshot.metrics
        if self._round < 0 and snapshot.phase is not None and snapshot.phase.participants:
            self._round = 0
            self._say(f"{len(snapshot.phase.participants)} devices train {snapshot.phase.run}")
        if metrics is None or metrics.round <= self._round:
            return
        self._round = metrics.round
        results = "; ".join(
            f"{device} exit {percent(found.exit_accuracy)} trunk {percent(found.trunk_accuracy)} "
            f"of {images(found.held_out_samples)}"
            for device, found in metrics.devices.items()
        )
        sent = megabytes(sum(found.bytes for found in metrics.devices.values()))
        fleet = accuracies_in_words(metrics.fleet, metrics.fleet.images)
        self._say(
            f"round {metrics.round} of {metrics.rounds}: fleet {fleet}; {results}; {sent} MB, "
            f"{metrics.seconds:.0f} s"
        )

    def baseline(self, progress: Progress) -> None:
        if progress.accuracy is not None:
            self._say(f"baseline {progress.name}: {percent(progress.accuracy)}")

    def _say(self, line: str) -> None:
        self._console.print(line, soft_wrap=True, markup=False, highlight=False)


class LiveDisplay:
    """A bar a device and a bar a baseline, drawn again as news comes in."""

    def __init__(self, console: Console) -> None:
        width = max(8, min(32, console.width - 76))
        self._devices, self._baselines = (
            _Sorted(
                TextColumn("{task.description}", markup=False),
                BarColumn(width),
                _Facts(),
                TimeRemainingColumn(compact=True),
                console=console,
            )
            for _ in range(2)
        )
        self._tasks: dict[str, TaskID] = {}
        self._baseline_tasks: dict[str, TaskID] = {}
        self._server = Text("starting", "dim")
        self._live = Live(console=console, refresh_per_second=4, get_renderable=self._render)

    def __enter__(self) -> Display:
        self._live.start(refresh=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def fleet(self, snapshot: FleetSnapshot) -> None:
        if snapshot.server is not None and snapshot.server.state == "online":
            self._server = Text(f"server: {snapshot.server.doing}", "dim")
        rounds = snapshot.run.rounds if snapshot.run else 0
        for device in snapshot.devices:
            task = self._tasks.get(device.id)
            if task is None:
                task = self._tasks[device.id] = self._devices.add_task(device.id, total=None, facts="")
            self._devices.update(
                task, total=rounds or None, completed=device.done, facts=_facts(device, rounds)
            )

    def baseline(self, progress: Progress) -> None:
        self._server = Text("baselines: centralized, and each device alone", "dim")
        task = self._baseline_tasks.get(progress.name)
        if task is None:
            task = self._baselines.add_task(progress.name, total=progress.steps, facts="")
            self._baseline_tasks[progress.name] = task
        facts = f"loss {progress.loss:.3f}"
        if progress.accuracy is not None:
            facts = f"accuracy {percent(progress.accuracy)}"
        self._baselines.update(task, completed=progress.step, facts=facts)

    def _render(self) -> Group:
        return Group(self._server, self._devices, *([self._baselines] if self._baseline_tasks else []))


class _Sorted(Bars):
    """Bars in the order of their names, pi-2 before pi-10, whoever came first."""

    def get_renderables(self) -> Iterator[RenderableType]:
        yield self.make_tasks_table(
            sorted(self.tasks, key=lambda task: (len(task.description), task.description))
        )


class _Facts(ProgressColumn):
    """What is known beside the bar, as it is: ids and stages are no markup."""

    def render(self, task: Task) -> Text:
        return Text(task.fields["facts"])


def _facts(device: DeviceView, rounds: int) -> str:
    facts = [f"round {device.round}/{rounds}" if rounds else device.doing]
    if device.loss is not None:
        facts.append(f"loss {device.loss:.3f}")
    if device.exit_accuracy is not None:
        facts.append(f"exit {percent(device.exit_accuracy)}")
    if device.trunk_accuracy is not None:
        facts.append(f"trunk {percent(device.trunk_accuracy)} of {images(device.held_out_samples)}")
    return "  ".join([*facts, f"{megabytes(device.bytes)} MB"])
