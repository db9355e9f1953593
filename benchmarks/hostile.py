# SPDX-License-Identifier: Apache-2.0
"""Does a flood of malformed messages change a run? Compares a flooded fleet with an undisturbed one.

    python -m benchmarks.hostile [--payloads 1000] [--seed 1]

During a run on a real Mosquitto, so many payloads are sent to each topic that the server or a device reads:
random bytes, crafted ones, and truncated or changed messages of the fleet. The readers reject all of them as
malformed or of another run; a changed message that is still valid is replaced by another one. Valid but false
messages are not sent. Devices would believe a fatal `inbox/error` or a false `round`, because the broker's
access list lets only the server write them. Growth is a process's peak memory from the beginning of the flood
to the last round, less the peak in the rounds before; the growth in the undisturbed run is subtracted.
Prints one JSON line, and exits with 1 if a process fails or grows, if a payload is not counted, or if weights
or the number of trained batches differ. Messages are sent at half the rate that a member may have, so 1,000
on each topic take minutes.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from benchmarks.peak_memory import Bytes, PeakMemory, megabytes
from benchmarks.real_fleet import CUTS, TOPICS, Fleet, Settings, out_option, working_directory
from splitee.errors import ExitCode, MalformedMessage
from splitee.mqtt.events import Message
from splitee.mqtt.link import Link
from splitee.networks.split import build_network
from splitee.protocol import routes
from splitee.protocol.cut_batch import CutBatch
from splitee.protocol.encoding import JsonMessage, PackedMessage
from splitee.protocol.fleet import DeviceStatus, ErrorReport, ServerClaim, ServerStatus
from splitee.protocol.inference import InferRequest, ModelReport, ReleaseWant
from splitee.protocol.parts import Assembler
from splitee.protocol.rounds import Commit, Features, RoundDone, RoundOpen, SoftLabelRows, Sync, Weights
from splitee.protocol.routes import ROUTES, Route
from splitee.protocol.run_spec import RunSpec
from splitee.protocol.sender_limits import RATE
from splitee_device.agent.session import SUBSCRIPTIONS as READ_BY_DEVICE

VICTIM = "pi-3"  # its features are the smallest
CALM_ROUNDS = 3  # rounds before the flood, for the memory that the processes need without it
PATIENCE = 60.0  # seconds in which the readers must catch up
REPLACED = 2.0  # seconds after which an uncounted payload may have been replaced by the victim's own status
BACKLOG = 1000  # payloads that a reader has not counted yet, at most; its queue holds them
GROWTH = 16 << 20  # bytes; 300 payloads and 10,000 on each topic both took 1 to 11 MB
KEPT = 20  # captured messages for each topic
CRAFTED = (
    b"",
    b"{}",
    b"[]",
    b"null",
    b"[" * 50_000,
    b'{"a":' * 20_000,
    b"\x91" * 50_000,
    b"\x81\xa1a" * 20_000,
    b"\xc1",
    b"\xdd\xff\xff\xff\xff",
    b"\xdf\xff\xff\xff\xff",
    b"\xc6\xff\xff\xff\xff",
)

Check = Callable[[bytes], object]  # raises MalformedMessage


@dataclass(frozen=True)
class Target:
    """A topic, the check of its payloads, and its readers."""

    topic: str
    check: Check
    readers: tuple[str, ...]
    latest_only: bool  # a newer payload may replace one that has not been read


READ_BY_SERVER = (
    *(route for route in ROUTES if route.sender == "device" and "server" in route.readers),
    routes.SERVER_CLAIM,
)


def targets(spec: RunSpec) -> list[Target]:
    """The topics that are read while a fleet trains."""
    network = build_network(spec.network, num_classes=spec.num_classes, stem=spec.stem, seed=0)
    shape = network.stages[CUTS[VICTIM] - 1].feature_shape
    readers: dict[Route, list[str]] = {route: [] for route in ROUTES}
    for route in READ_BY_SERVER:
        readers[route].append("server")
    for route in READ_BY_DEVICE:
        readers[route].extend([VICTIM] if route.of_device else CUTS)
    del readers[routes.PREDICTIONS]  # read by people only
    return [
        Target(
            route.topic(TOPICS, VICTIM),
            _check(route, spec, shape),
            tuple(names),
            routes.latest_key(TOPICS, Message(route.topic(TOPICS, VICTIM), b"{}")) is not None,
        )
        for route, names in readers.items()
        if names
    ]


def _check(route: Route, spec: RunSpec, shape: tuple[int, ...]) -> Check:
    """A check by the rules of the route's readers, which accept a single part of a larger message."""

    def check(payload: bytes) -> None:
        whole = Assembler().add(VICTIM, payload, route.limit) if route.parts else payload
        if whole is None:
            return
        message = route.message.decode(whole)
        if route is routes.INFER:
            raise MalformedMessage("a request without ResponseTopic and CorrelationData")
        if isinstance(message, Features | RoundDone | Weights) and "server" in route.readers:
            if message.run != spec.run:
                raise MalformedMessage("of another run", "foreign")
            if isinstance(message, Features):
                CutBatch.of(message, spec, shape)

    return check


def capture(link: Link, fleet: Fleet) -> dict[str, list[bytes]]:
    """The fleet's messages by topic, captured until CALM_ROUNDS are committed."""
    captured: dict[str, list[bytes]] = {}
    link.subscribe(f"{TOPICS.base}/#")
    link.open(10)

    def is_calm() -> bool:
        commits = captured.get(TOPICS.commit)
        return commits is not None and Commit.decode(commits[-1]).round >= CALM_ROUNDS

    def capture_next() -> None:
        if fleet.finished:
            raise click.ClickException(f"the fleet did not commit round {CALM_ROUNDS}")
        event = link.receive(1)
        if isinstance(event, Message):
            samples = captured.setdefault(event.topic, [])
            samples[KEPT - 1 :] = [event.payload]

    fleet.until(is_calm, capture_next)
    return captured


def with_rare_messages(captured: dict[str, list[bytes]], run: str) -> dict[str, list[bytes]]:
    """`captured`, with a made-up message for each topic that a fleet rarely uses."""
    features = captured[TOPICS.device(VICTIM, "features")][0]
    tensor = Features.decode(features).features
    weights = Weights(run=run, round=1, tensors={"client.layer": tensor})
    rare: dict[str, JsonMessage | PackedMessage] = {
        TOPICS.device(VICTIM, "sync"): Sync(run=run, instance=1),
        TOPICS.device(VICTIM, "infer"): InferRequest(run=run, cut=CUTS[VICTIM], features=tensor),
        TOPICS.device(VICTIM, "weights"): weights,
        TOPICS.device(VICTIM, "inbox/weights"): weights,
        TOPICS.device(VICTIM, "inbox/soft-labels"): SoftLabelRows(
            run=run, round=1, attempt=1, first=0, rows=tensor
        ),
        TOPICS.device(VICTIM, "model-want"): ReleaseWant(release="0" * 64, offset=1),
        TOPICS.device(VICTIM, "software-want"): ReleaseWant(release="0" * 64, offset=1),
        TOPICS.device(VICTIM, "model"): ModelReport(release="0" * 64, state="failed", reason="parity"),
        TOPICS.device(VICTIM, "inbox/error"): ErrorReport(code=ExitCode.REJECTED, message="features: ..."),
        TOPICS.server_claim: ServerClaim(instance=1),
    }
    return {**captured, **{topic: [message.encode()] for topic, message in rare.items()}}


class Payloads:
    """Generates malformed payloads from the fleet's messages."""

    def __init__(self, samples: Mapping[str, list[bytes]], generator: random.Random) -> None:
        self._samples = samples
        self._all = [payload for kept in samples.values() for payload in kept]
        self._random = generator
        self._makers = (self._noise, self._crafted, self._cut_short, self._changed, self._changed)

    def draw(self, target: Target) -> bytes:
        """The next payload that the target's readers reject."""
        samples = self._samples.get(target.topic, self._all)  # of all topics, if there are none of this one
        while True:
            payload = self._random.choice(self._makers)(self._random.choice(samples))
            try:
                target.check(payload)
            except MalformedMessage:
                return payload

    def _noise(self, _sample: bytes) -> bytes:
        return self._random.randbytes(int(self._random.expovariate(1 / 200)))

    def _crafted(self, _sample: bytes) -> bytes:
        return self._random.choice(CRAFTED)

    def _cut_short(self, sample: bytes) -> bytes:
        return sample[: self._random.randrange(len(sample))]

    def _changed(self, sample: bytes) -> bytes:
        """Make one to five changes: replace or insert bytes, most often in the first 200 bytes."""
        data = bytearray(sample)
        for _ in range(self._random.randint(1, 5)):
            end = self._random.choice((len(data), min(len(data), 200)))
            start, length = self._random.randrange(end + 1), self._random.randrange(8)
            data[start : start + self._random.choice((0, length))] = self._random.randbytes(length)
        return bytes(data)


class Observer:
    """Collects how many messages each process of the fleet reports as rejected."""

    def __init__(self, link: Link, rounds: int) -> None:
        self.rejected = dict.fromkeys((*CUTS, "server"), 0)
        self.ending = False  # the last round is open; the memory of ending processes does not count
        self._link = link
        self._rounds = rounds
        link.subscribe(TOPICS.round, TOPICS.server_status, TOPICS.all_devices("status"))
        link.open(10)

    def take(self, timeout: float) -> None:
        """Process all events that arrive; those of the flood itself arrive here, too."""
        while (event := self._link.receive(timeout)) is not None:
            timeout = 0
            if not isinstance(event, Message):
                continue
            with suppress(MalformedMessage):
                if event.topic == TOPICS.round:
                    self.ending = RoundOpen.decode(event.payload).round >= self._rounds
                elif event.topic == TOPICS.server_status:
                    self._note("server", ServerStatus.decode(event.payload).rejected)
                elif found := TOPICS.parse_device(event.topic):
                    self._note(found[0], DeviceStatus.decode(event.payload).rejected)

    def _note(self, name: str, rejected: int) -> None:
        self.rejected[name] = max(self.rejected[name], rejected)


class Flood:
    """Sends payloads no faster than the readers count them.

    Attributes:
        sent: number of payloads by reader.
        repeated: number of payloads that were sent again to the server, which may have counted both.
    """

    def __init__(self, fleet: Fleet, link: Link, observer: Observer) -> None:
        self.sent = dict.fromkeys(observer.rejected, 0)
        self.repeated = 0
        self._fleet = fleet
        self._link = link
        self._observer = observer

    def send(self, count: int, targets: list[Target], payloads: Payloads) -> None:
        """Send `count` payloads on each topic; if `latest_only`, each after the one before has been counted.

        The victim's status comes last. The victim's own messages may replace a payload that waits at the
        server, which cannot be observed, so a payload that is not counted soon is sent again.
        """
        own = TOPICS.device(VICTIM, "status")
        last = [target for target in targets if target.topic == own]
        others = [target for target in targets if target.topic != own]
        self._send(count, [target for target in others if not target.latest_only], payloads, BACKLOG)
        self._send(count, [target for target in others if target.latest_only], payloads, 0)
        if self.sent != self._observer.rejected:
            raise click.ClickException(f"{self.sent} were sent, {self._observer.rejected} counted")
        self._send(count, last, payloads, 0)

    def _send(self, count: int, targets: list[Target], payloads: Payloads, backlog: int) -> None:
        """Send to the topics in turn, at a rate at which the readers drop no message."""
        pause, due = len(targets) / (RATE / 2), time.monotonic()
        for _ in range(count):
            due = max(due + pause, time.monotonic())
            time.sleep(max(0.0, due - time.monotonic()))
            drawn = [(target, payloads.draw(target)) for target in targets]
            for target, payload in drawn:
                self._link.publish(target.topic, payload)
                for reader in target.readers:
                    self.sent[reader] += 1
            self._wait(backlog, drawn)

    def _wait(self, backlog: int, drawn: list[tuple[Target, bytes]]) -> None:
        """Wait until each reader has counted all but `backlog` of its payloads."""
        started = again = time.monotonic()
        counted = self._observer.rejected
        while any(sent - counted[name] > backlog for name, sent in self.sent.items()):
            if self._fleet.finished:
                raise click.ClickException("the run was over before the flood: take more --rounds")
            now = time.monotonic()
            if now - started > PATIENCE:
                raise click.ClickException(f"{self.sent} were sent, only {counted} counted")
            if now - again > REPLACED and drawn[0][0].topic == TOPICS.device(VICTIM, "status"):
                again = now
                self._repeat(drawn[0][1])
            self._link.publish(TOPICS.server_claim, ServerClaim(instance=time.time_ns()).encode())
            self._observer.take(0.1)

    def _repeat(self, payload: bytes) -> None:
        """Send a payload as the victim's status again; the victim reads every one."""
        self._link.publish(TOPICS.device(VICTIM, "status"), payload)
        self.sent[VICTIM] += 1
        self.repeated += 1


@dataclass(frozen=True)
class Flooded:
    """The result of a run that was flooded."""

    report: dict[str, Any]
    topics: int
    sent: dict[str, int]  # by reader
    repeated: int  # sent again to the server, which may have counted both
    rejected: dict[str, int]  # by reader, as it reports
    growth: Bytes
    seconds: float  # duration of the flood


def flooded_run(directory: Path, settings: Settings, count: int, seed: int) -> Flooded:
    """Run a fleet to its end; after CALM_ROUNDS send `count` payloads on each topic."""
    server = [*settings.server("sequential"), "--quarantine-after", "0"]  # all are in the victim's name
    with (
        Fleet(directory, server, settings.devices()) as fleet,
        closing(Link(fleet.broker.address, "vandal")) as listener,
        closing(Link(fleet.broker.address, "vandal")) as vandal,  # the same client id: replaces the session
    ):
        memory = PeakMemory(fleet.pids)
        captured = capture(listener, fleet)
        listener.close()
        calm = memory.peaks()
        spec = RunSpec.decode(captured[TOPICS.run][-1])
        payloads = Payloads(with_rare_messages(captured, spec.run), random.Random(seed))
        read = targets(spec)
        observer = Observer(vandal, spec.rounds)
        flood = Flood(fleet, vandal, observer)
        started = time.monotonic()
        flood.send(count, read, payloads)
        seconds = time.monotonic() - started
        while not observer.ending and not fleet.finished:
            observer.take(0.5)
        flooded = memory.peaks()
        while not fleet.finished:
            observer.take(0.5)
        observer.take(1)
        report = fleet.report()
    observer.rejected["server"] = report["rejected"]
    growth = {name: flooded[name] - calm[name] for name in calm}
    return Flooded(report, len(read), flood.sent, flood.repeated, observer.rejected, growth, seconds)


def compare(undisturbed: Flooded, flooded: Flooded, payloads: int) -> dict[str, Any]:
    """The benchmark's figures, in MB of 2^20 bytes."""
    calm = undisturbed.report
    beyond = {name: grown - max(undisturbed.growth[name], 0) for name, grown in flooded.growth.items()}
    result: dict[str, Any] = {
        "benchmark": "hostile",
        "topics": flooded.topics,
        "payloads_a_topic": payloads,
        "sent": flooded.sent,
        "repeated": flooded.repeated,
        "counted": flooded.rejected,
        "growth_mb": megabytes(flooded.growth),
        "undisturbed_growth_mb": megabytes(undisturbed.growth),
        "bound_mb": GROWTH >> 20,
        "same_weights": calm["weights_sha256"] == flooded.report["weights_sha256"],
        "weights_sha256": flooded.report["weights_sha256"],
        "batches_trained": [calm["batches_trained"], flooded.report["batches_trained"]],
        "unexpected_exits": flooded.report["unexpected_exits"],
        "seconds": round(flooded.seconds, 1),
    }
    counted_twice = flooded.rejected["server"] - flooded.sent["server"]
    result["passed"] = (
        {**flooded.sent, "server": 0} == {**flooded.rejected, "server": 0}
        and 0 <= counted_twice <= flooded.repeated
        and max(beyond.values()) < GROWTH
        and result["same_weights"]
        and calm["batches_trained"] == flooded.report["batches_trained"]
        and not result["unexpected_exits"]
    )
    return result


@click.command()
@click.option("--payloads", type=click.IntRange(min=1), default=1000, show_default=True, help="Per topic.")
@click.option("--seed", default=1, show_default=True, help="Seed of the payloads; that of the training is 1.")
@click.option(
    "--rounds",
    type=click.IntRange(min=CALM_ROUNDS + 1),
    default=250,
    show_default=True,
    help="The rounds must outlast the flood.",
)
@click.option("--samples", default=64, show_default=True, help="Training images per device.")
@out_option
def main(payloads: int, seed: int, rounds: int, samples: int, out: Path | None) -> None:
    """Flood a fleet with malformed messages; compare it with an undisturbed run."""
    console = Console(stderr=True)
    settings = Settings(rounds, samples)
    with working_directory(out) as directory:
        with console.status("undisturbed run"):
            calm = flooded_run(directory / "calm", settings, 0, seed)
        with console.status(f"a run with {payloads} malformed messages on each topic"):
            flooded = flooded_run(directory / "flooded", settings, payloads, seed)
    result = compare(calm, flooded, payloads)
    click.echo(json.dumps(result))
    sys.exit(not result["passed"])


if __name__ == "__main__":
    main()
