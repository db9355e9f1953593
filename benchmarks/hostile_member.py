# SPDX-License-Identifier: Apache-2.0
"""Does a hostile member harm others than itself? Compares a fleet that has some with an undisturbed one.

    python -m benchmarks.hostile_member [--messages 12000] [--seed 1]

In a run on a real Mosquitto four more devices join, each with a valid profile: one while the server gathers
devices, one in a training phase, one while statistics are taken, one in an evaluation. Each sends mutations
of every message class that a device may send (`benchmarks.mutations`), under its own name: fields far out of
bounds, values that are not finite, torn bytes, retained messages, invalid response topics. Messages that the
server would accept as a batch of the phase are not sent: such false batches are within the bounds, and
docs/explanation/security.md describes their effect. A device is in quarantine as soon as three quarters of
its messages have been rejected.

Then the server's CPU time per round is measured, without and with a device that sends 27,000 tiny messages
per second.

Prints one JSON line. Exits with 1 if a process has failed, if the weights differ from those of the
undisturbed run, or if the flood adds more than a third to the server's CPU time.
"""

from __future__ import annotations

import json
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import click
import numpy as np
import psutil
from rich.console import Console

from benchmarks.mutations import Mutations
from benchmarks.real_fleet import (
    CUTS,
    TOPICS,
    Fleet,
    Settings,
    out_option,
    undisturbed_run,
    working_directory,
)
from splitee.errors import MalformedMessage
from splitee.mqtt.events import Message
from splitee.mqtt.link import Link
from splitee.networks.split import build_network
from splitee.protocol import routes
from splitee.protocol.codecs import encode_tensor
from splitee.protocol.cut_batch import CutBatch
from splitee.protocol.encoding import JsonMessage, PackedMessage
from splitee.protocol.fields import Phase
from splitee.protocol.fleet import DeviceStatus, Profile
from splitee.protocol.inference import (
    InferRequest,
    ModelReport,
    PredictedState,
    PredictionReport,
    ReleaseWant,
    Serving,
    SoftwareReport,
)
from splitee.protocol.parts import Assembler
from splitee.protocol.rounds import Features, RoundDone, RoundOpen, Sync, Weights
from splitee.protocol.routes import Route
from splitee.protocol.run_spec import RunSpec
from splitee.protocol.sender_limits import RATE

JOINS_IN = {
    "evil-gather": ("gather", 0),
    "evil-train": ("train", 2),
    "evil-statistics": ("statistics", 2),
    "evil-evaluate": ("evaluate", 3),
}
CUT = CUTS["pi-3"]  # that of an honest device, so that the trunk has the same stages as without them
ROUNDS = 12
PACE = 0.8 * RATE  # messages per second
FLOOD = 27_000  # messages per second
FLOODED = (6, 8)  # begin and end of the flood, in commits after the last attack; as many before are calm
MOST_CPU_RATIO = 4 / 3  # of the server's CPU time per round, flooded to calm


class Member:
    """A hostile device: it joins like any other, and then sends mutated messages."""

    def __init__(self, link: Link, name: str, spec: RunSpec, shape: tuple[int, ...], seed: int) -> None:
        self._link = link
        self._name = name
        self._spec = spec
        self._shape = shape
        self._mutations = Mutations(TOPICS, name, self._samples(None), seed)
        self.sent = 0

    def join(self) -> None:
        samples = self._samples(None)
        for route in (routes.STATUS, routes.PROFILE):
            self._link.publish(route.topic(TOPICS, self._name), samples[route].encode(), retain=True)

    def send(self, count: int, opened: RoundOpen | None, seed: int) -> None:
        """Send `count` mutations of messages for the phase `opened`, at a rate at which all are read."""
        self._mutations = Mutations(TOPICS, self._name, self._samples(opened), seed)
        started = time.monotonic()
        for number in range(count):
            time.sleep(max(0.0, started + number / PACE - time.monotonic()))
            route, drawn = self._mutations.draw()
            if self._is_proper_batch(route, drawn.payload):
                continue
            self._link.publish(
                route.topic(TOPICS, self._name),
                drawn.payload,
                retain=drawn.retain,
                response_topic=drawn.response_topic,
                correlation=drawn.correlation,
            )
            self.sent += 1

    def _is_proper_batch(self, route: Route, payload: bytes) -> bool:
        if route is not routes.FEATURES:
            return False
        try:
            whole = Assembler().add(self._name, payload, route.limit)
            if whole is None:
                return False
            CutBatch.of(Features.decode(whole), self._spec, self._shape)
        except MalformedMessage:
            return False
        return True

    def _samples(self, opened: RoundOpen | None) -> Mapping[Route, JsonMessage | PackedMessage]:
        """A valid message for every route that a device writes."""
        run = self._spec.run
        number, attempt = (opened.round, opened.attempt) if opened else (1, 1)
        phase: Phase = opened.batches if opened and opened.phase != "gather" else "train"
        features = encode_tensor("fp32", np.ones((4, *self._shape), np.float32))
        position: dict[str, Any] = {"run": run, "round": number, "attempt": attempt}
        return {
            routes.STATUS: DeviceStatus(state="online", instance=1),
            routes.PROFILE: Profile(
                protocol=1, instance=1, version="1", cut=CUT, class_names=self._spec.class_names,
                train_samples=64, held_out_samples=16,
            ),
            routes.FEATURES: Features(
                **position, phase=phase, step=0, features=features, labels=bytes(4), exit_labels=bytes(4),
                exit_entropy=bytes(8),
            ),
            routes.ROUND_DONE: RoundDone(
                **position, digest="0" * 64, batches=4, bytes=1, loss=1.0, accuracy=0.5, seconds=1.0,
                phase=phase,
            ),
            routes.WEIGHTS: Weights(**position, tensors={"client.conv1.weight": features}, phase=phase),
            routes.SYNC: Sync(run=run, instance=1, weights=("client.conv1.weight",), soft_labels=0),
            routes.INFER: InferRequest(run=run, cut=CUT, features=features),
            routes.PREDICTIONS: PredictionReport(
                image="x.jpg", label="a", probability=0.5, entropy=0.5, source="exit", milliseconds=1.0,
                time=1.0,
            ),
            routes.MODEL_WANT: ReleaseWant(release="0" * 64, offset=0),
            routes.SOFTWARE_WANT: ReleaseWant(release="0" * 64, offset=0),
            routes.SOFTWARE_REPORT: SoftwareReport(release="", state="in service", runs="0"),
            routes.MODEL_REPORT: ModelReport(release="0" * 64, state="failed", reason="x"),
            routes.SERVING: Serving(state="online", instance=1, per_minute=1.0),
            routes.PREDICTED_STATE: PredictedState(label="a", confidence=0.9, since=1.0, time=1.0),
        }  # fmt: skip


class RoundMonitor:
    """Follows the fleet's rounds, and measures the server's CPU time.

    Attributes:
        cpu: CPU seconds of the server so far at each commit, by round.
        seconds: time of each commit, by round.
    """

    def __init__(self, link: Link, fleet: Fleet) -> None:
        self._link = link
        self._fleet = fleet
        self._server = psutil.Process(fleet.pids["server"])
        self.spec: RunSpec | None = None
        self.opened: RoundOpen | None = None
        self.committed = 0
        self.cpu: dict[int, float] = {}
        self.seconds: dict[int, float] = {}
        link.subscribe(TOPICS.run, TOPICS.round, TOPICS.commit)
        link.open(10)

    def take(self) -> None:
        event = self._link.receive(0.05)
        if not isinstance(event, Message):
            return
        if event.topic == TOPICS.run:
            self.spec = RunSpec.decode(event.payload)
        elif event.topic == TOPICS.round:
            self.opened = RoundOpen.decode(event.payload)
        elif event.topic == TOPICS.commit:
            self.committed = json.loads(event.payload)["round"]
            times = self._server.cpu_times()
            self.cpu[self.committed] = times.user + times.system
            self.seconds[self.committed] = time.monotonic()

    def until_phase(self, phase: str, number: int) -> None:
        def is_there() -> bool:
            if self._fleet.finished:
                raise click.ClickException(f"the fleet ended before {phase} of round {number}")
            opened, spec = self.opened, self.spec
            if phase == "gather":
                return spec is not None and bool(spec.class_names)
            return opened is not None and opened.phase == phase and opened.round >= number

        self._fleet.until(is_there, self.take)

    def until_committed(self, number: int) -> None:
        self._fleet.until(lambda: self.committed >= number or self._fleet.finished, self.take)


@contextmanager
def flooding(address: tuple[str, int]) -> Iterator[list[int]]:
    """Send FLOOD messages per second at QoS 0 as one member, in a thread; yields the number sent so far."""
    topic = routes.SYNC.topic(TOPICS, "evil-flood").encode()
    body = len(topic).to_bytes(2, "big") + topic + b"\0" + b"x"
    packet = b"\x30" + bytes([len(body)]) + body
    connect = b"\0\x04MQTT\x05\x02\0\x00\0\0\x0aevil-flood"
    sent, stop = [0], threading.Event()

    def flood() -> None:
        with socket.create_connection(address) as connection:
            connection.sendall(b"\x10" + bytes([len(connect)]) + connect)
            connection.recv(100)
            started, count = time.monotonic(), 100
            while not stop.is_set():
                connection.sendall(packet * count)
                sent[0] += count
                time.sleep(max(0.0, started + sent[0] / FLOOD - time.monotonic()))

    thread = threading.Thread(target=flood, daemon=True)
    thread.start()
    try:
        yield sent
    finally:
        stop.set()
        thread.join()


def attacked_run(directory: Path, settings: Settings, messages: int, seed: int) -> dict[str, Any]:
    """Run a fleet with the hostile members to its end; return its report, with the attack's figures."""
    each = messages // len(JOINS_IN)
    server = [*settings.server("sequential"), "--quarantine-after", str(each * 3 // 4)]
    with (
        Fleet(directory, server, settings.devices()) as fleet,
        closing(Link(fleet.broker.address, "watch")) as listener,
        closing(Link(fleet.broker.address, "evil")) as link,
    ):
        link.open(10)
        monitor = RoundMonitor(listener, fleet)
        sent = {}
        for index, (name, (phase, number)) in enumerate(JOINS_IN.items()):
            monitor.until_phase(phase, number)
            assert monitor.spec is not None
            member = Member(link, name, monitor.spec, _shape(monitor.spec), seed + index)
            member.join()
            member.send(each, monitor.opened, seed + index)
            sent[name] = member.sent
        monitor.until_committed(FLOODED[0] + monitor.committed)
        calm = monitor.committed
        with flooding((fleet.broker.address.host, fleet.broker.address.port)) as flood:
            began = time.monotonic()
            monitor.until_committed(calm + FLOODED[1] - FLOODED[0])
            rate = flood[0] / (time.monotonic() - began)
        flooded = monitor.committed
        fleet.finish(monitor.take)
        report = fleet.report()
    span = flooded - calm
    report["sent"] = sent
    report["flood_rate"] = round(rate)
    report["server_cpu_a_round"] = [
        round((monitor.cpu[calm] - monitor.cpu[calm - span]) / span, 3),
        round((monitor.cpu[flooded] - monitor.cpu[calm]) / span, 3),
    ]
    report["seconds_a_round"] = [
        round((monitor.seconds[calm] - monitor.seconds[calm - span]) / span, 3),
        round((monitor.seconds[flooded] - monitor.seconds[calm]) / span, 3),
    ]
    return report


def _shape(spec: RunSpec) -> tuple[int, ...]:
    network = build_network(spec.network, num_classes=spec.num_classes, stem=spec.stem, device="meta")
    return network.stages[CUT - 1].feature_shape


@click.command()
@click.option(
    "--messages", type=click.IntRange(min=12), default=12_000, show_default=True, help="Total number."
)
@click.option("--seed", default=1, show_default=True, help="Seed of the messages; that of the training is 1.")
@click.option("--samples", default=64, show_default=True, help="Training images per device.")
@out_option
def main(messages: int, seed: int, samples: int, out: Path | None) -> None:
    """Add hostile members to a fleet; compare it with an undisturbed run."""
    console = Console(stderr=True)
    settings = Settings(ROUNDS, samples)
    with working_directory(out) as directory:
        with console.status("undisturbed run"):
            calm = undisturbed_run(directory / "calm", "sequential", settings)
        with console.status(f"a run with {messages} messages of hostile members"):
            attacked = attacked_run(directory / "attacked", settings, messages, seed)
    before, flooded = attacked["server_cpu_a_round"]
    result = {
        "benchmark": "hostile_member",
        "sent": attacked["sent"],
        "rejected": attacked["rejected"],
        "same_weights": calm["weights_sha256"] == attacked["weights_sha256"],
        "weights_sha256": attacked["weights_sha256"],
        "unexpected_exits": attacked["unexpected_exits"],
        "flood_rate": attacked["flood_rate"],
        "server_cpu_a_round": [before, flooded],
        "seconds_a_round": attacked["seconds_a_round"],
    }
    result["passed"] = (
        result["same_weights"] and not result["unexpected_exits"] and flooded <= MOST_CPU_RATIO * before
    )
    click.echo(json.dumps(result))
    sys.exit(not result["passed"])


if __name__ == "__main__":
    main()
