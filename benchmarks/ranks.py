# SPDX-License-Identifier: Apache-2.0
"""How much faster are two ranks, and do kills change their result? Compared with a server of one process.

    python -m benchmarks.ranks [--repetitions 3] [--kills 10] [--strategy data-parallel] [--devices 8]

A real server, under torchrun if it has ranks, uses a real Mosquitto. Synthetic devices send features that are
computed from (device, round, step) alone. Runs are therefore reproducible, and devices need little CPU time.

Speed: both servers train a network at 32 pixels at the same time, with --strategy, one thread per process.
Other load on the machine disturbs wall time, so CPU time counts: batches trained per CPU second of the
busiest rank, from the opening of the second round to the last commit. This is the pace of ranks that have a
core each, including the work of rank 0 while the others wait. Processes keep a core for 100 ms at a time, so
that they seldom lose their caches to each other (`benchmarks.time_slices`). The median of the repetitions
counts. With four devices a rank has two batches in a joint step, the fewest for which ranks make sense. With
more devices, training is a larger part of a step.
Kills: the two ranks are killed in turn with SIGKILL at seeded random moments; torchrun restarts both.
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

LEAST_SPEEDUP = 1.8  # of two ranks over one process
CLASSES = tuple(f"class-{number}" for number in range(10))
CUT = 3
SYNC_AFTER = 5.0  # seconds without a message from the server, after which a device sends a `sync`
LONGEST = 3600.0  # seconds
TICK = 0.05  # seconds
TURN = threading.Lock()  # one thread uses msgspec at a time: it has crashed in several at once
TORCHRUN = Path(sys.executable).with_name("torchrun")


@dataclass(frozen=True)
class Settings:
    """A run: its network, devices, rounds, steps per device and round, images per batch, and strategy."""

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
    """A synthetic device: sends batches of random features within its window, and trains nothing."""

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
        """Send batches until the run is finished."""
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
            self._on_round_open(RoundOpen.decode(message.payload))
        elif message.topic == routes.PARTICIPATION.topic(self.topics, self.name):
            self.part = Participation.decode(message.payload)
        else:
            self._on_ack(Ack.decode(message.payload))

    def _on_round_open(self, opened: RoundOpen) -> None:
        self.is_finished = opened.phase == "finished"
        before, self.opened = self.opened, opened
        if before is not None and _key(before) == _key(opened):
            return
        self.sent = self.acknowledged = 0
        participation = self.part
        self.room = (
            participation.room if participation is not None and _key(participation) == _key(opened) else 0
        )
        if self.ack is not None:  # may come from a rank before the announcement of its phase
            self._on_ack(self.ack)
        self._send()

    def _on_ack(self, ack: Ack) -> None:
        self.ack = ack
        if self.opened is None or (ack.round, ack.attempt, ack.phase) != _key(self.opened):
            return
        self.room = ack.room
        self.acknowledged = max(self.acknowledged, ack.step)
        if ack.resend:
            self.sent = min(self.sent, ack.step)
        self._send()

    def _send(self) -> None:
        """Publish batches up to the end of the window, and round-done once all are acknowledged."""
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
    """A server with `ranks` ranks, and its synthetic devices.

    The fleet's name is that of `directory`, and must not be in use on the broker.
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
        """Yield the server's process, or torchrun's, which restarts the ranks at most `restarts` times."""
        started = ("--standalone", "--nproc-per-node", str(self._ranks), "--max-restarts", str(restarts))
        program = [str(TORCHRUN), *started, "-m", "splitee"] if self._ranks > 1 else None
        connection = ("--broker", str(self._broker.address), "--fleet", self.topics.fleet)
        flags = ("server", *connection, "--state", str(self.directory / "state"), *self._settings.flags())
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
        """The running processes of the server, by rank."""
        if self._ranks == 1:
            return {0: psutil.Process(process.pid)}
        found = {}
        for child in psutil.Process(process.pid).children():
            try:
                found[int(child.environ()["RANK"])] = child
            except (psutil.Error, KeyError):  # it is starting, or has just ended
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
    """The CPU seconds of each rank and the wall seconds in which `batches` were trained."""

    cpu: Sequence[float]
    batches: int
    wall: float

    @property
    def batches_a_second(self) -> float:
        """Batches per CPU second of the busiest rank."""
        return self.batches / max(self.cpu)


def measure(server: Server, settings: Settings, broker: RestartableBroker) -> Pace:
    """Run to the end; the pace over all rounds but the first."""
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
    return {rank: sum(found.cpu_times()[:2]) for rank, found in server.processes(process).items()}


def speed(directory: Path, broker: RestartableBroker, settings: Settings) -> tuple[Pace, Pace, bool]:
    """The paces of one process and of two ranks that run at once, and whether their weights are equal."""
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
    """Compare a run whose ranks are killed with an undisturbed run of one process."""
    calm = Server(directory / "calm", broker, 1, settings)
    with calm.running() as process:
        assert process.wait(LONGEST) == 0
    stormy, draw, killed = Server(directory / "stormy", broker, 2, settings), random.Random(seed), 0
    with (
        closing(Link(broker.address, "watches-kills")) as link,
        stormy.running(restarts=kills) as process,
    ):
        link.subscribe(stormy.topics.device("device-0", "features"))
        link.open(30)
        batches_left, attempt = 0, -1
        while process.poll() is None:
            event = link.receive(TICK)
            if not isinstance(event, Message) or not event.payload or killed == kills:
                continue
            # With the first batch of a new attempt, draw the number of batches until the next kill.
            with TURN:
                message = routes.FEATURES.message.decode(event.payload)
            if message.attempt != attempt:  # type: ignore[union-attr]
                attempt, batches_left = message.attempt, draw.randrange(settings.steps)  # type: ignore[union-attr]
            batches_left -= 1
            running = stormy.processes(process)
            if batches_left < 0 and len(running) == 2:
                running[killed % 2].kill()
                running[killed % 2].wait()
                killed, batches_left = killed + 1, sys.maxsize
        code = process.wait()
    expected, report = calm.report(), stormy.report()
    result = {
        "benchmark": "ranks-killed",
        "strategy": settings.strategy,
        "kills": killed,
        "same_weights": expected["weights_sha256"] == report["weights_sha256"],
        "weights_sha256": report["weights_sha256"],
        "batches_lost": max(0, expected["batches_trained"] - report["batches_trained"]),
        "batches_trained_twice": max(0, report["batches_trained"] - expected["batches_trained"]),
        "exit_code": code,
    }
    result["passed"] = (
        result["same_weights"]
        and killed == kills
        and not (code or result["batches_lost"] or result["batches_trained_twice"])
    )
    return result


@click.command()
@click.option("--repetitions", default=3, show_default=True, help="Repetitions of the speed test; 0: none.")
@click.option("--kills", default=10, show_default=True, help="Number of kills; 0: none.")
@click.option("--seed", default=1, show_default=True, help="Seed of the kills; the run's own is 1.")
@click.option("--network", default="resnet18", show_default=True, help="Network of the speed test.")
@click.option(
    "--rounds", default=3, show_default=True, help="Rounds of the speed test; the first does not count."
)
@click.option("--devices", default=4, show_default=True, help="Devices of the speed test.")
@click.option("--steps", default=40, show_default=True, help="Steps of the speed test, per device and round.")
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
    """Compare two ranks with one process: batches per CPU second, and the weights if ranks are killed."""
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
