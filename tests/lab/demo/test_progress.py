# SPDX-License-Identifier: Apache-2.0
"""What a demo shows while it runs: on terminals of 80 and 120 columns, and as lines of a log."""

from __future__ import annotations

import io
import re
from dataclasses import replace

import msgspec
import pytest
from fakes import FakeClock
from rich.console import Console

from splitee.protocol.fleet import DeviceMetrics, Metrics
from splitee.protocol.fleet_view import DeviceView, FleetSnapshot
from splitee_lab.demo.progress import LineDisplay, LiveDisplay, render
from splitee_lab.demo.state import DemoState
from splitee_lab.demo.workload import Workload
from splitee_lab.methods.baselines import Progress

ROUNDS = 5
UNKNOWN = DeviceView(
    id="",
    online=True,
    doing="starting",
    cut=None,
    stage=None,
    round=0,
    step=0,
    steps=0,
    loss=None,
    batches=0,
    bytes=0,
    exit_accuracy=None,
    trunk_accuracy=None,
    seen=None,
)


def ids(count: int) -> list[str]:
    return [f"pi-{number}" for number in range(1, count + 1)]


def training(device: str, number: int, share: float) -> DeviceView:
    return replace(
        UNKNOWN,
        id=device,
        doing="training",
        cut=3,
        round=number,
        step=int(100 * share),
        steps=100,
        loss=0.8123,
        bytes=22_100_000 * number,
        exit_accuracy=0.718 if number > 1 else None,
        trunk_accuracy=0.75 if number > 1 else None,
        held_out_samples=1000,
    )


def snapshot(*devices: DeviceView, metrics: Metrics | None = None) -> FleetSnapshot:
    return FleetSnapshot("demo", None, None, None, 0, metrics, devices, 0)


def metrics(number: int, *devices: str) -> Metrics:
    figures = DeviceMetrics(
        cut=3,
        stage="layer1.1",
        train_samples=2000,
        held_out_samples=1000,
        bytes=22_100_000 * number,
        exit_accuracy=0.718,
        trunk_accuracy=0.75,
        adaptive_accuracy=0.74,
    )
    return Metrics(
        run="r",
        round=number,
        rounds=ROUNDS,
        seconds=20.0 * number,
        devices=dict.fromkeys(devices, figures),
        batches_trained=1,
        duplicates_dropped=0,
    )


def workload(*devices: str) -> Workload:
    alone = {
        f"{device} {kind}": work for device in devices for kind, work in (("alone", 1), ("alone-exit", 0.5))
    }
    return Workload(len(devices), {"centralized": len(devices), **alone}, {})


def shown(state: DemoState, width: int, height: int = 24) -> list[str]:
    """The lines of a terminal, after a check that they fit and that none is shortened."""
    output = io.StringIO()
    console = Console(file=output, width=width, height=height, force_terminal=True, color_system=None)
    console.print(render(state, console))
    lines = output.getvalue().splitlines()
    assert all(len(line) <= width for line in lines)
    assert len(lines) < height, "a line is left for the cursor"
    assert "…" not in output.getvalue()
    return [line.rstrip() for line in lines]


def words(line: str) -> list[str]:
    """The words of a row, without its bar."""
    return re.sub("[━╸╺]+", " ", line).split()


@pytest.mark.parametrize("width", [80, 120])
def test_terminal_shows_every_part_of_a_demo(width: int) -> None:
    clock = FakeClock()
    state = DemoState(ids(3), ROUNDS, measuring=120, clock=clock)
    parts = "training, release, predictions and baselines"
    assert shown(state, width)[:2] == ["starting", f"end not known yet: profiler, {parts}"]

    state.fleet(snapshot())
    clock.advance(34)
    state.fleet(snapshot(replace(UNKNOWN, id="pi-1", cut=3)))
    lines = shown(state, width)
    assert lines[0] == "profiler: 2 devices measure what cuts cost, 34 s of at most 120 s"
    assert lines[3].split() == ["device", "round", "loss", "exit", "trunk", "sent"]
    assert words(lines[5]) == ["pi-2", "-", "-", "-", "-", "-"]
    assert lines[5].count("━") > 0, "its bar is the time that it may measure for"

    state.expect(workload(*ids(3)))
    clock.advance(10)
    state.fleet(snapshot(*(training(device, 1, 0.5) for device in ids(3))))
    clock.advance(10)
    state.fleet(snapshot(*(training(device, 2, 0.5) for device in ids(3)), metrics=metrics(1, *ids(3))))
    lines = shown(state, width)
    assert lines[0] == "training, round 2 of 5"
    assert re.fullmatch(rf"done in about (\d min )?\d+ s: {parts}", lines[1])
    row = ["pi-1", "2", "of", "5", "0.812", "71.8", "%", "75.0", "%", "44.2", "MB"]
    assert words(lines[4]) == row

    idle = [replace(UNKNOWN, id=device, cut=3, doing="serving") for device in ids(3)]
    done = [replace(one, round=ROUNDS, doing="evaluating") for one in idle]
    state.fleet(snapshot(*done, metrics=metrics(ROUNDS, *ids(3))))
    state.fleet(snapshot(*idle, metrics=metrics(ROUNDS, *ids(3))))
    lines = shown(state, width)
    assert lines[0] == "release: models are exported and sent to the devices"
    assert words(lines[4]) == ["pi-1", "5", "of", "5", "0.812", "71.8", "%", "75.0", "%", "110.5", "MB"]

    state.predicted(0.5)
    assert shown(state, width)[0].startswith("predictions: released models on held-out images")

    state.baseline(Progress("centralized", 10, 100, 1.234))
    state.baseline(Progress("pi-3 alone-exit", 100, 100, 0.5, 0.672))
    lines = shown(state, width)
    assert lines[0] == "baselines, to compare with: 1 of 7 done"
    assert words(lines[-2]) == ["centralized", "1.234", "-"]
    assert words(lines[-1]) == ["pi-3", "alone-exit", "0.500", "67.2", "%"]


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("height", [16, 24, 50])
def test_devices_that_do_not_fit_the_terminal_are_counted(width: int, height: int) -> None:
    state, many = DemoState(ids(100), ROUNDS), ids(100)
    state.fleet(snapshot(*(training(device, 1, 0.5) for device in many)))
    lines = shown(state, width, height)
    assert re.fullmatch(r"and \d+ more", lines[-1])
    state.expect(workload(*many))
    for device in many:
        state.baseline(Progress(f"{device} alone", 50, 100, 1.0))
    assert sum("more" in line for line in shown(state, width, height)) == 2


def test_demo_without_baselines_estimates_its_end_without_them() -> None:
    clock = FakeClock()
    state = DemoState(["pi-1"], 1, baselines=False, clock=clock)
    state.fleet(snapshot(training("pi-1", 1, 0.0)))
    clock.advance(10)
    state.fleet(snapshot(training("pi-1", 1, 0.5)))
    assert state.end.startswith("done in about ")
    assert state.end.endswith(" s: training, release and predictions")


def test_terminal_is_redrawn_as_updates_arrive() -> None:
    output = io.StringIO()
    with LiveDisplay(Console(file=output, width=80, height=24, force_terminal=True)) as display:
        display.begin(DemoState(["pi-1"], ROUNDS))
        display.fleet(snapshot(training("pi-1", 3, 0.5)))
        display.expect(workload("pi-1"))
        display.predicted(0.1)
        display.baseline(Progress("pi-1 alone", 8, 100, 1.0))
    assert "pi-1 alone" in output.getvalue() and "3 of 5" in output.getvalue()


def test_log_has_one_line_per_part_round_and_baseline() -> None:
    output = io.StringIO()
    with LineDisplay(Console(file=output, width=80)) as display:
        display.begin(DemoState(["[b]"], ROUNDS))
        for number in (1, 1, 2):
            display.fleet(snapshot(training("[b]", number, 0.5), metrics=with_name(metrics(number), "[b]")))
        display.predicted(0.2)
        display.predicted(0.4)
        display.baseline(Progress("[b] alone", 8, 100, 1.0))
        display.baseline(Progress("[b] alone", 100, 100, 1.0, 0.672))
    lines = output.getvalue().splitlines()
    assert [line.partition(":")[0] for line in lines] == [
        "training, round 1 of 5",
        "round 1 of 5",
        "round 2 of 5",
        "predictions",
        "baseline [b] alone",
    ]
    assert lines[1].startswith(
        "round 1 of 5: [b] exit 71.8 % trunk 75.0 % of 1,000 images; 22.1 MB, 20 s; end not known yet: "
    )
    assert lines[-1] == "baseline [b] alone: 67.2 %"


def with_name(found: Metrics, device: str) -> Metrics:
    return msgspec.structs.replace(found, devices={device: metrics(found.round, "x").devices["x"]})
