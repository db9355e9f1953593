# SPDX-License-Identifier: Apache-2.0
"""The cost of watching a large fleet: CPU time per message and per snapshot, and bytes of retained messages.

    python -m benchmarks.viewer --devices 1000 --rounds 1000

The view first receives all retained messages of every device, then a status of each, which a real device
publishes once per second. There is no broker: this measures only the view and its snapshot, which
`splitee status` and the page use.
"""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable, Iterator

import click
import msgspec

from splitee.mqtt.events import Message
from splitee.protocol import routes
from splitee.protocol.accuracies import MOST_CONFUSED_BY_DEVICE, ConfusionMatrix
from splitee.protocol.encoding import JsonMessage
from splitee.protocol.fleet import DeviceFigures, DeviceMetrics, DeviceStatus, FleetMetrics, Metrics, Profile
from splitee.protocol.fleet_view import FleetView
from splitee.protocol.inference import LastPrediction, ModelReport, ServedModel, Serving
from splitee.protocol.overview import Timing, WaitedFor
from splitee.protocol.rounds import Participant, Participation, RoundOpen
from splitee.protocol.routes import Route
from splitee.protocol.run_spec import RunSpec
from splitee.protocol.topics import Topics
from splitee.protocol.traffic import ByPurpose, Traffic
from splitee_server.rounds.curves import fleet_history

TOPICS = Topics("large")
RUN = "r1"
CLASSES = 10
NOW = 1_800_000_000.0
RELEASE = "a" * 64
REPEATS = 5


def metrics(number: int, rounds: int) -> Metrics:
    return Metrics(
        run=RUN,
        round=number,
        rounds=rounds,
        seconds=60.0 * number,
        batches_trained=1,
        duplicates_dropped=0,
        time=NOW + 60.0 * number,
        fleet=FleetMetrics(exit_accuracy=0.4321, trunk_accuracy=0.5432, adaptive_accuracy=0.4987),
    )


def of_fleet(devices: int, rounds: int) -> Iterator[tuple[Route, JsonMessage]]:
    """Messages of the server about the whole fleet."""
    history = [metrics(number + 1, rounds) for number in range(rounds)]
    yield routes.RUN, RunSpec(protocol=1, run=RUN, network="resnet18", num_classes=CLASSES, rounds=rounds)
    yield (
        routes.ROUND,
        RoundOpen(run=RUN, round=rounds, attempt=1, phase="train", participants=devices),
    )
    waiting = tuple(WaitedFor(f"device-{index:04}", NOW) for index in range(min(devices, 100)))
    yield (
        routes.TIMING,
        Timing(run=RUN, round=rounds, attempt=1, phase="train", opened=NOW, waiting=waiting, estimate=NOW),
    )
    yield routes.METRICS, history[-1]
    yield routes.HISTORY, fleet_history(RUN, history, history[-1])


def of_device(rounds: int) -> Iterator[tuple[Route, JsonMessage]]:
    """Messages of one device, and of the server about it."""
    size = min(CLASSES, MOST_CONFUSED_BY_DEVICE)
    yield status(0)
    yield (
        routes.PROFILE,
        Profile(
            protocol=1,
            instance=1,
            version="1.0",
            cut=3,
            class_names=tuple(f"class {index}" for index in range(CLASSES)),
            train_samples=1000,
            held_out_samples=100,
        ),
    )
    yield (
        routes.FIGURES,
        DeviceFigures(
            run=RUN,
            round=rounds,
            figures=DeviceMetrics(
                cut=3, stage="layer1.1", train_samples=1000, exit_accuracy=0.5, trunk_accuracy=0.7
            ),
            confusion=ConfusionMatrix(tuple(range(size)), ((9,) * size,) * size),
        ),
    )
    part = Participant(cut=3, steps=100, base=rounds - 1)
    yield (
        routes.PARTICIPATION,
        Participation(run=RUN, round=rounds, attempt=1, phase="train", part=part, room=8),
    )
    last = tuple(LastPrediction(f"class {index}", 0.9, "exit", NOW) for index in range(5))
    yield (
        routes.SERVING,
        Serving(state="online", instance=2, time=NOW, per_minute=12.0, latency=30.0, last=last),
    )
    served = ServedModel(RELEASE, RUN, rounds, NOW)
    yield routes.MODEL_REPORT, ModelReport(release=RELEASE, state="in service", run=RUN, serves=served)


def status(step: int) -> tuple[Route, DeviceStatus]:
    by_purpose = ByPurpose(training=10_000 * step, evaluation=5000, protocol=2000, headers=900)
    return routes.STATUS, DeviceStatus(
        state="online",
        instance=1,
        doing="training",
        round=3,
        step=step,
        steps=100,
        loss=1.25,
        batches=step,
        bytes=by_purpose.payload,
        temperature=61.5,
        time=NOW,
        traffic=Traffic(up=by_purpose, down=by_purpose),
        memory=300 << 20,
        memory_limit=512 << 20,
    )


def cpu(action: Callable[[], object]) -> float:
    """The least CPU seconds of REPEATS calls of `action`."""
    seconds = []
    for _ in range(REPEATS):
        began = time.process_time()
        action()
        seconds.append(time.process_time() - began)
    return min(seconds)


@click.command()
@click.option("--devices", default=1000, show_default=True)
@click.option("--rounds", default=1000, show_default=True)
def viewer(devices: int, rounds: int) -> None:
    names = [f"device-{index:04}" for index in range(devices)]

    def message(route: Route, content: JsonMessage, device: str = "+") -> Message:
        return Message(route.topic(TOPICS, device), content.encode(), retained=True)

    retained = [message(*published) for published in of_fleet(devices, rounds)]
    retained += [message(*published, name) for published in of_device(rounds) for name in names]
    statuses = [message(*status(50), name) for name in names]
    view = FleetView(TOPICS.fleet)

    def take(messages: list[Message]) -> None:
        for each in messages:
            view.take(each, NOW)

    tracemalloc.start()
    take(retained)
    kept = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    first, a_status = cpu(lambda: take(retained)), cpu(lambda: take(statuses))

    def second() -> None:
        """A status of each device, and four snapshots, as for a page."""
        quarter = -(-devices // 4)
        for start in range(0, devices, quarter):
            take(statuses[start : start + quarter])
            view.snapshot()

    snapshot, encoded = cpu(view.snapshot), cpu(lambda: msgspec.json.encode(view.snapshot()))
    a_second = cpu(second)
    assert view.snapshot().malformed == 0
    click.echo(f"{devices} devices, {rounds} rounds: {len(retained)} retained messages")
    click.echo(f"all of them   {1e6 * first / len(retained):8.1f} us each, {kept / 1e6:.1f} MB kept")
    click.echo(f"a status      {1e6 * a_status / devices:8.1f} us, {len(statuses[0].payload)} bytes")
    click.echo(f"a snapshot    {1e3 * snapshot:8.1f} ms without changes, {1e3 * encoded:.1f} ms as JSON")
    click.echo(f"a second      {1e3 * a_second:8.1f} ms: a status of each device, and four snapshots")
    for route in (routes.TIMING, routes.HISTORY):
        size = next(len(each.payload) for each in retained if each.topic == route.topic(TOPICS))
        click.echo(f"{route.path:14}{size:8} bytes")


if __name__ == "__main__":
    viewer()
