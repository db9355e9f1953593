# SPDX-License-Identifier: Apache-2.0
"""What do ranks gain, and what does killing them cost? A server of two ranks beside one of a single process.

    python -m benchmarks.ranks [--repetitions 3] [--kills 10] [--strategy data-parallel] [--devices 8]

A real server, under torchrun if it has ranks, on a real Mosquitto, with synthetic devices that send features
computed from (device, round, step) alone. The result of a run is therefore known, and devices cost little.

Speed: both servers train a network at 32 pixels at the same time, with --strategy, one thread per process. On
a shared machine wall time says little, so CPU time counts: the batches trained per CPU second of the busiest
rank, from the opening of the second round to the last commit. This is the pace of ranks that have a core
each, with all that rank 0 does while the others wait. Processes keep a core for 100 ms at a time, so that
none loses its caches to others all the time (`benchmarks.time_slices`). The median of the repetitions counts.
With four devices a rank has two batches in a joint step, the fewest for which ranks make sense. With more
devices a larger part of a step is training.
Kills: one rank after the other is killed with SIGKILL at seeded random moments; torchrun restarts all of
them.
Prints a JSON line for each part, and exits with 1 if a figure is out of its bounds.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import click
import numpy as np
import psutil

from benchmarks.real_fleet import out_option, working_directory
from benchmarks.time_slices import take_long_slices
from splitee.mqtt.events import Connected, Message
from splitee.mqtt.link import Link
from splitee.networks.split import build_network
from splitee.protocol import routes
from splitee.protocol.cut_batch import CutBatch
from splitee.protocol.fleet import DeviceStatus, Profile
from splitee.protocol.rounds import Ack, Commit, Participation, RoundDone, RoundOpen, Sync
from splitee.protocol.run_spec import RunSpec
from splitee.protocol.topics import PROTOCOL, Topics
from splitee.training.seeds import seed_for
from splitee_lab.local.brokers import MOSQUITTO_SETTINGS, RestartableBroker

LEAST_SPEEDUP = 1.8  # of two ranks over one
CLASSES = tuple(f"class-{number}" for number in range(10))
CUT = 3
SYNC_AFTER = 5.0  # seconds without a message of the server after which a device sends a `sync`
LONGEST = 3600.0  # seconds
TICK = 0.05  # seconds
TURN = threading.Lock()  # one thread works at a time: msgspec has been seen to crash in several
TORCHRUN = Path(sys.executable).with_name("torchrun")


@dataclass(frozen=True)
class Settings:
    """One run: network and images' side in pixels, and how much is trained of it."""

    network: str
    devices: int
    rounds: int
    steps: int
    batch: int
    strategy: str

    def flags(self) -> list[str]:
        run = ("--network", self.network, "--input", "3x32x32", "--num-classes", "10", "--seed", "1")
        amount = ("--devices", self.devices, "--rounds", self.rounds, "--batch-size", self.batch)
        plain = ("--recipe", "plain", "--client-averaging", "none", "--no-release")
        return [str(word) for word in (*run, *amount, "--strategy", self.strategy, *plain, "--threads", 1)]


@dataclass
class Device:
    """Sends the batches that the server requests, one thread a device; it trains nothing."""

    name: str
    topics: Topics
    link: Link
    settings: Settings
    shape: tuple[int, ...]
    instance: int = field(default_factory=time.time_ns)
    run: RunSpec | None = None
    opened: RoundOpen | None = None
    part: Participation | None = None
    ack: Ack | None = None  # the last one
    room: int = 0
    sent: int = 0
    acknowledged: int = 0
    is_finished: bool = False

    def take_part(self) -> None:
        """Until the run is finished."""
        inbox = [route.topic(self.topics, self.name) for route in (routes.ACK, routes.PARTICIPATION)]
        self.link.subscribe(self.topics.run, self.topics.round, *inbox)
        self.link.open(30)
        last_received = time.monotonic()
        while not self.is_finished:
            event = self.link.receive(1)
            with TURN:
                if isinstance(event, Connected):
                    self._introduce()
                elif isinstance(event, Message) and event.payload:
                    last_received = time.monotonic()
                    self._on_message(event)
                elif time.monotonic() - last_received > SYNC_AFTER:
                    last_received = time.monotonic()
                    self._sync()

    def _introduce(self) -> None:
        samples = self.settings.steps * self.settings.batch
        status = DeviceStatus(state="online", instance=self.instance)
        profile = Profile(
            protocol=PROTOCOL,
            instance=self.instance,
            version="0",
            cut=CUT,
            class_names=CLASSES,
            train_samples=samples,
            held_out_samples=0,
        )
        self._publish(routes.STATUS, status.encode(), retain=True)
        self._publish(routes.PROFILE, profile.encode(), retain=True)

    def _sync(self) -> None:
        if self.run is not None:
            self._publish(routes.SYNC, Sync(run=self.run.run, instance=self.instance).encode())

    def _on_message(self, message: Message) -> None:
        if message.topic == self.topics.run:
            self.run = RunSpec.decode(message.payload)
        elif message.topic == self.topics.round:
            self._begin(RoundOpen.decode(message.payload))
        elif message.topic == routes.PARTICIPATION.topic(self.topics, self.name):
            self.part = Participation.decode(message.payload)
        else:
            self._go_on(Ack.decode(message.payload))

    def _begin(self, opened: RoundOpen) -> None:
        self.is_finished = opened.phase == "finished"
        before, self.opened = self.opened, opened
        if before is not None and _key(before) == _key(opened):
            return
        self.sent = self.acknowledged = 0
        participation = self.part
        self.room = (
            participation.room if participation is not None and _key(participation) == _key(opened) else 0
        )
        if self.ack is not None:  # of a rank that has opened the phase before it was announced
            self._go_on(self.ack)
        self._send()

    def _go_on(self, ack: Ack) -> None:
        self.ack = ack
        if self.opened is None or (ack.round, ack.attempt, ack.phase) != _key(self.opened):
            return
        self.room = ack.room
        self.acknowledged = max(self.acknowledged, ack.step)
        if ack.resend:
            self.sent = min(self.sent, ack.step)
        self._send()

    def _send(self) -> None:
        """A window full of batches; after the last one is acknowledged, that this was all."""
        opened, run = self.opened, self.run
        participation = self.part
        if (
            opened is None
            or run is None
            or opened.phase != "train"
            or participation is None
            or participation.part is None
        ):
            return
        steps = participation.part.steps
        while self.sent < min(self.acknowledged + self.room, steps):
            batch = self._batch(opened.round, self.sent)
            self._publish(routes.FEATURES, batch.message(run, opened, "train", self.sent).encode())
            self.sent += 1
        if self.acknowledged == steps:
            self._publish(routes.ROUND_DONE, _done(opened, steps))

    def _batch(self, number: int, step: int) -> CutBatch:
        draw = np.random.default_rng(seed_for(self.name, number, step))
        features = draw.standard_normal((self.settings.batch, *self.shape), np.float32)
        return CutBatch(features, draw.integers(0, 10, self.settings.batch))

    def _publish(self, route: routes.Route, payload: bytes, *, retain: bool = False) -> None:
        self.link.publish(route.topic(self.topics, self.name), payload, retain=retain)


def _key(opened: RoundOpen | Participation) -> tuple[int, int, str]:
    return opened.round, opened.attempt, opened.phase


def _done(opened: RoundOpen, steps: int) -> bytes:
    return RoundDone(
        run=opened.run,
        round=opened.round,
        attempt=opened.attempt,
        digest="0" * 64,
        batches=steps,
        bytes=0,
        loss=1.0,
        accuracy=0.1,
        seconds=1.0,
    ).encode()


class Server:
    """A server with so many ranks, its devices, and what they have come to.

    Its fleet has the name of its directory, which must be new to the broker.
    """

    def __init__(self, directory: Path, broker: RestartableBroker, ranks: int, settings: Settings) -> None:
        directory.mkdir(parents=True)
        self.directory = directory
        self.topics = Topics(directory.name)
        self._ranks = ranks
        self._settings = settings
        self._broker = broker
        shape = build_network(settings.network, num_classes=10).stages[CUT - 1].feature_shape
        self._devices = [
            Device(name, self.topics, Link(broker.address, f"{directory.name}-{name}"), settings, shape)
            for name in (f"device-{number}" for number in range(settings.devices))
        ]

    @contextmanager
    def running(self, restarts: int = 0) -> Iterator[subprocess.Popen[bytes]]:
        """The server's process, or torchrun's; `restarts`: that it may make."""
        started = ("--standalone", "--nproc-per-node", str(self._ranks), "--max-restarts", str(restarts))
        program = [str(TORCHRUN), *started, "-m", "splitee"] if self._ranks > 1 else None
        where = ("--broker", str(self._broker.address), "--fleet", self.topics.fleet)
        flags = ("server", *where, "--state", str(self.directory / "state"), *self._settings.flags())
        threads = [threading.Thread(target=device.take_part, daemon=True) for device in self._devices]
        with ExitStack() as stack, (self.directory / "log").open("ab") as log:
            for device in self._devices:
                stack.callback(device.link.close)
            process = subprocess.Popen(
                [*(program or [sys.executable, "-m", "splitee"]), *flags], stdout=log, stderr=log
            )
            stack.callback(_end, process)
            for thread in threads:
                thread.start()
            yield process

    def processes(self, process: subprocess.Popen[bytes]) -> dict[int, psutil.Process]:
        """By rank."""
        if self._ranks == 1:
            return {0: psutil.Process(process.pid)}
        found = {}
        for child in psutil.Process(process.pid).children():
            try:
                found[int(child.environ()["RANK"])] = child
            except (psutil.Error, KeyError):  # it begins, or has just ended
                continue
        return found

    def report(self) -> dict[str, Any]:
        report: dict[str, Any] = json.loads((self.directory / "state" / "report.json").read_text())
        return report


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
    process.wait()


@dataclass(frozen=True)
class Pace:
    """CPU seconds by rank in which so many batches were trained, and what they took by the clock."""

    cpu: Sequence[float]
    batches: int
    wall: float

    @property
    def batches_a_second(self) -> float:
        """Of CPU, of the rank that takes most."""
        return self.batches / max(self.cpu)


def measure(server: Server, settings: Settings, broker: RestartableBroker) -> Pace:
    """A run to its end."""
    with (
        closing(Link(broker.address, f"watches-{server.topics.fleet}")) as link,
        server.running() as process,
    ):
        link.subscribe(server.topics.round, server.topics.commit)
        link.open(30)
        before: dict[int, float] = {}
        started = 0.0
        while True:
            event = link.receive(LONGEST)
            if not isinstance(event, Message) or not event.payload:
                continue
            if event.topic == server.topics.round and not before:
                with TURN:
                    opened = RoundOpen.decode(event.payload)
                if (opened.phase, opened.round) == ("train", 2):
                    before, started = _cpu(server, process), time.monotonic()
            elif event.topic == server.topics.commit and _round_of(event) == settings.rounds:
                break
        after, wall = _cpu(server, process), time.monotonic() - started
        process.wait(LONGEST)
    batches = settings.devices * settings.steps * (settings.rounds - 1)
    return Pace([after[rank] - before[rank] for rank in sorted(before)], batches, wall)


def _round_of(commit: Message) -> int:
    with TURN:
        return Commit.decode(commit.payload).round


def _cpu(server: Server, process: subprocess.Popen[bytes]) -> dict[int, float]:
    return {rank: sum(one.cpu_times()[:2]) for rank, one in server.processes(process).items()}


def speed(directory: Path, broker: RestartableBroker, settings: Settings) -> tuple[Pace, Pace, bool]:
    """One process, two ranks, at the same time; whether they end with the same weights."""
    servers = [
        Server(directory / f"{directory.name}-of-{ranks}", broker, ranks, settings) for ranks in (1, 2)
    ]
    paces: dict[int, Pace] = {}

    def run(index: int) -> None:
        paces[index] = measure(servers[index], settings, broker)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    digests = {server.report()["weights_sha256"] for server in servers}
    return paces[0], paces[1], len(digests) == 1


def kill(
    directory: Path, broker: RestartableBroker, settings: Settings, kills: int, seed: int
) -> dict[str, Any]:
    """A run whose ranks are killed, beside one of one process that nothing happens to."""
    calm = Server(directory / "calm", broker, 1, settings)
    with calm.running() as process:
        assert process.wait(LONGEST) == 0
    stormy, draw, done = Server(directory / "stormy", broker, 2, settings), random.Random(seed), 0
    with (
        closing(Link(broker.address, "watches-kills")) as link,
        stormy.running(restarts=kills) as process,
    ):
        link.subscribe(stormy.topics.device("device-0", "features"))
        link.open(30)
        due, attempt = 0, -1
        while process.poll() is None:
            event = link.receive(TICK)
            if not isinstance(event, Message) or not event.payload or done == kills:
                continue
            # A batch of a new attempt: from here on so many batches until the next rank is killed.
            with TURN:
                message = routes.FEATURES.message.decode(event.payload)
            if message.attempt != attempt:  # type: ignore[union-attr]
                attempt, due = message.attempt, draw.randrange(settings.steps)  # type: ignore[union-attr]
            due -= 1
            running = stormy.processes(process)
            if due < 0 and len(running) == 2:
                running[done % 2].kill()
                running[done % 2].wait()
                done, due = done + 1, sys.maxsize
        code = process.wait()
    one, other = calm.report(), stormy.report()
    result = {
        "benchmark": "ranks-killed",
        "strategy": settings.strategy,
        "kills": done,
        "same_weights": one["weights_sha256"] == other["weights_sha256"],
        "weights_sha256": other["weights_sha256"],
        "batches_lost": max(0, one["batches_trained"] - other["batches_trained"]),
        "batches_trained_twice": max(0, other["batches_trained"] - one["batches_trained"]),
        "exit_code": code,
    }
    result["passed"] = (
        result["same_weights"]
        and done == kills
        and not (code or result["batches_lost"] or result["batches_trained_twice"])
    )
    return result


@click.command()
@click.option("--repetitions", default=3, show_default=True, help="Of the speed test; 0: none.")
@click.option("--kills", default=10, show_default=True, help="Number; 0: none.")
@click.option("--seed", default=1, show_default=True, help="Seed of the kills; the run's own is 1.")
@click.option("--network", default="resnet18", show_default=True, help="Network of the speed test.")
@click.option("--rounds", default=3, show_default=True, help="Of the speed test; the first is not measured.")
@click.option("--devices", default=4, show_default=True, help="Of the speed test; more share a step's costs.")
@click.option("--steps", default=40, show_default=True, help="Of the speed test, per device and round.")
@click.option("--strategy", default="averaging", show_default=True, help="One that ranks can share.")
@out_option
def main(
    repetitions: int,
    kills: int,
    seed: int,
    network: str,
    rounds: int,
    devices: int,
    steps: int,
    strategy: str,
    out: Path | None,
) -> None:
    """Two ranks beside one process: batches a CPU second, and weights when ranks are killed."""
    os.environ["OMP_NUM_THREADS"] = "1"
    passed = True
    with working_directory(out) as directory:
        directory.mkdir(parents=True, exist_ok=True)
        broker = RestartableBroker("mosquitto", directory, MOSQUITTO_SETTINGS)
        broker.start()
        try:
            if repetitions:
                take_long_slices()
                settings = Settings(
                    network, devices=devices, rounds=rounds, steps=steps, batch=32, strategy=strategy
                )
                found = [
                    speed(directory / f"repetition-{number}", broker, settings)
                    for number in range(repetitions)
                ]
                ratios = [two.batches_a_second / one.batches_a_second for one, two, _ in found]
                result = {
                    "benchmark": "ranks-speed",
                    "strategy": strategy,
                    "network": network,
                    "devices": devices,
                    "speedup": round(median(ratios), 3),
                    "repetitions": [round(ratio, 3) for ratio in ratios],
                    "one_process_cpu": [round(one.cpu[0], 2) for one, _, _ in found],
                    "ranks_cpu": [[round(cpu, 2) for cpu in two.cpu] for _, two, _ in found],
                    "batches": found[0][0].batches,
                    "wall": [[round(one.wall, 1), round(two.wall, 1)] for one, two, _ in found],
                    "same_weights": all(same for *_, same in found),
                }
                result["passed"] = result["same_weights"] and median(ratios) >= LEAST_SPEEDUP
                click.echo(json.dumps(result))
                passed = bool(result["passed"])
            if kills:
                tiny = Settings(
                    "benchmarks.tiny:network",
                    devices=3,
                    rounds=max(2, kills),
                    steps=40,
                    batch=8,
                    strategy=strategy,
                )
                result = kill(directory, broker, tiny, kills, seed)
                click.echo(json.dumps(result))
                passed = passed and bool(result["passed"])
        finally:
            broker.stop()
    sys.exit(not passed)


if __name__ == "__main__":
    main()
