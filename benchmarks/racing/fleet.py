# SPDX-License-Identifier: Apache-2.0
"""Our side of a race: Mosquitto, `splitee server` and three `splitee device`."""

from __future__ import annotations

import sys
import time
from contextlib import closing
from pathlib import Path

from benchmarks.racing.job import NETWORK, Job
from benchmarks.racing.outcome import Followed, Round
from benchmarks.racing.processes import Processes
from splitee.mqtt.events import Message
from splitee.mqtt.link import Link
from splitee.protocol.fleet_view import FleetView
from splitee.protocol.rounds import RoundOpen
from splitee.protocol.topics import Topics
from splitee_lab.demo.fleet import Demo, device_arguments, server_arguments
from splitee_lab.local.brokers import mosquitto
from splitee_lab.local.forked import without_settings

FLEET = "race"
TOPICS = Topics(FLEET)
CONNECT = 30.0  # seconds
TICK = 0.1  # seconds


def follow(job: Job, directory: Path) -> Followed:
    """Run the fleet until the generator is closed."""
    demo = Demo(
        network=NETWORK,
        strategy=job.spec.strategy,
        rounds=job.rounds,
        devices=len(job.devices),
        seed=job.seed,
        broker="mosquitto",
        codec=job.spec.codec,
        averaging=job.spec.client_averaging,
        samples=job.samples,
        baselines=False,
        out=directory,
    )
    program = [sys.executable, "-m", "splitee"]
    with mosquitto(directory) as broker, closing(Link(broker.address, "race")) as link:
        settings = {"SPLITEE_BROKER": str(broker.address), "SPLITEE_FLEET": FLEET, "SPLITEE_THREADS": "1"}
        view = FleetView(FLEET)
        with Processes(directory, without_settings() | settings) as processes:
            link.subscribe(*view.filters)
            link.open(CONNECT)
            processes.start("server", [*program, *server_arguments(demo, job.num_classes)])
            while _receive_on(link, TOPICS.run) is None:
                processes.check()
            started = time.monotonic()
            for device in job.devices:
                command = [*program, *device_arguments(demo, device)]
                processes.start(device.id, command, share=job.shares[device.id])
            while True:
                yield _next_update(link, view, processes, job, started)
                broker.check()
                processes.check()


def _receive_on(link: Link, topic: str) -> Message | None:
    event = link.receive(TICK)
    return event if isinstance(event, Message) and event.topic == topic else None


def _next_update(
    link: Link, view: FleetView, processes: Processes, job: Job, started: float
) -> Round | float | None:
    event = link.receive(TICK)
    seconds = time.monotonic() - started
    if not isinstance(event, Message):
        return None
    view.take(event, time.time())
    if event.topic == TOPICS.round:
        opened = RoundOpen.decode(event.payload)
        return seconds if (opened.round, opened.phase) == (1, "train") else None
    if event.topic != TOPICS.metrics:
        return None
    metrics = view.snapshot().metrics
    if metrics is None or metrics.fleet.trunk_accuracy is None:
        return None
    return Round(
        number=metrics.round,
        seconds=seconds,
        accuracy=metrics.fleet.trunk_accuracy,
        adaptive=metrics.fleet.adaptive_accuracy,
        cpu=processes.cpu_seconds(list(job.shares)),
        server_cpu=sum(processes.cpu_seconds(["server"]).values()),
        sent=sum(device.bytes for device in metrics.devices.values()),
    )
