# SPDX-License-Identifier: Apache-2.0
"""Does a flood of malformed messages change anything? A fleet under one, beside a fleet without.

    python -m benchmarks.hostile [--payloads 1000] [--seed 1]

In the middle of a run on a real Mosquitto, so many payloads go to each topic that the server or a device
reads: random bytes, crafted ones, and the fleet's own that are cut short or changed. All are malformed by the
reader's rules, or of another run where the reader says so; what a change leaves well-formed is drawn anew.
Well-formed lies are not sent: a fatal `inbox/error` or the `round` of a run that is none is believed, because
the broker's access list lets nobody but the server write them. Memory is each process's peak since the flood
began, over that of the rounds before it, and beyond what the undisturbed run grows by in as many rounds.
Prints one JSON line, and exits with 1 when a process stops or grows, when one payload is not counted, or when
the weights are not the undisturbed run's. Messages go at half the pace that a member may have: 1,000 on each
topic take minutes.
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
from benchmarks.real_fleet import CUTS, TOPICS, Fleet, Settings, out_option, until, working_directory
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
CALM_ROUNDS = 3  # before the flood: what the processes hold then is what they need
PATIENCE = 60.0  # seconds without a reader catching up
REPLACED = 2.0  # seconds after which a payload that waits is taken to have given way to the fleet's own word
BACKLOG = 1000  # payloads that a reader has not counted yet: its queue holds them, and they are no growth
GROWTH = 16 << 20  # bytes; 300 payloads a topic and 10,000 took the same 1 to 11 MB, a leak would take more
KEPT = 20  # messages of the fleet's own, of each topic
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
    """A topic, what its readers take, and who they are."""

    topic: str
    check: Check
    readers: tuple[str, ...]
    last_counts: bool  # a payload that waits may give way to the next one, and is not read then


READ_BY_SERVER = (
    *(route for route in ROUTES if route.sender == "device" and "server" in route.readers),
    routes.SERVER_CLAIM,
)


def targets(spec: RunSpec) -> list[Target]:
    """Every topic that is read while a fleet trains."""
    network = build_network(spec.network, num_classes=spec.num_classes, stem=spec.stem, seed=0)
    shape = network.stages[CUTS[VICTIM] - 1].feature_shape
    readers: dict[Route, list[str]] = {route: [] for route in ROUTES}
    for route in READ_BY_SERVER:
        readers[route].append("server")
    for route in READ_BY_DEVICE:
        readers[route].extend([VICTIM] if route.of_device else CUTS)
    del readers[routes.PREDICTIONS]  # that nobody reads but people
    return [
        Target(
            route.topic(TOPICS, VICTIM),
            _check(route, spec, shape),
            tuple(who),
            routes.latest_key(TOPICS, Message(route.topic(TOPICS, VICTIM), b"{}")) is not None,
        )
        for route, who in readers.items()
        if who
    ]


def _check(route: Route, spec: RunSpec, shape: tuple[int, ...]) -> Check:
    """By the rules of whoever reads a route; a part alone may wait for others."""

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


def listen(link: Link, fleet: Fleet) -> dict[str, list[bytes]]:
    """The fleet's own messages by topic, until its first rounds are over."""
    captured: dict[str, list[bytes]] = {}
    link.subscribe(f"{TOPICS.base}/#")
    link.open(10)

    def is_calm() -> bool:
        commits = captured.get(TOPICS.commit)
        return commits is not None and Commit.decode(commits[-1]).round >= CALM_ROUNDS

    def capture_next() -> None:
        if fleet.finished:
            raise click.ClickException(f"the fleet did not come to the end of round {CALM_ROUNDS}")
        event = link.receive(1)
        if isinstance(event, Message):
            samples = captured.setdefault(event.topic, [])
            samples[KEPT - 1 :] = [event.payload]

    until(is_calm, capture_next)
    return captured


def with_rare_ones(captured: dict[str, list[bytes]], run: str) -> dict[str, list[bytes]]:
    """`captured`, and what a fleet publishes seldom."""
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
    """Malformed payloads, made from the fleet's own messages."""

    def __init__(self, samples: Mapping[str, list[bytes]], generator: random.Random) -> None:
        self._samples = samples
        self._all = [payload for kept in samples.values() for payload in kept]
        self._random = generator
        self._makers = (self._noise, self._crafted, self._cut_short, self._changed, self._changed)

    def draw(self, target: Target) -> bytes:
        """The next payload that the target's readers refuse."""
        samples = self._samples.get(target.topic, self._all)  # others', of what this fleet says nothing of
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
        """A few changes: bytes replaced, taken out, or put in; most of them where the fields' names are."""
        data = bytearray(sample)
        for _ in range(self._random.randint(1, 5)):
            end = self._random.choice((len(data), min(len(data), 200)))
            start, length = self._random.randrange(end + 1), self._random.randrange(8)
            data[start : start + self._random.choice((0, length))] = self._random.randbytes(length)
        return bytes(data)


class Observer:
    """Counts what the fleet's processes say they have refused."""

    def __init__(self, link: Link, rounds: int) -> None:
        self.rejected = dict.fromkeys((*CUTS, "server"), 0)
        self.ending = False  # the last round is open; what ends touches pages of libraries once more
        self._link = link
        self._rounds = rounds
        link.subscribe(TOPICS.round, TOPICS.server_status, TOPICS.all_devices("status"))
        link.open(10)

    def take(self, timeout: float) -> None:
        """All that has come; the flood's own payloads come back here too."""
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
    """Sends, no faster than the readers count."""

    def __init__(self, fleet: Fleet, link: Link, observer: Observer) -> None:
        self.sent = dict.fromkeys(observer.rejected, 0)
        self.repeated = 0  # payloads sent once more to the server, which may have counted the first ones
        self._fleet = fleet
        self._link = link
        self._observer = observer

    def send(self, count: int, everywhere: list[Target], payloads: Payloads) -> None:
        """Send `count` payloads on each topic; where only the last counts, each when the one before is read.

        Last comes the victim's status. Its own takes the place of a payload that still waits at the server,
        which nobody can see from outside, so a payload that is not counted soon is repeated.
        """
        own = TOPICS.device(VICTIM, "status")
        last = [target for target in everywhere if target.topic == own]
        others = [target for target in everywhere if target.topic != own]
        self._send(count, [target for target in others if not target.last_counts], payloads, BACKLOG)
        self._send(count, [target for target in others if target.last_counts], payloads, 0)
        if self.sent != self._observer.rejected:
            raise click.ClickException(f"of {self.sent}, {self._observer.rejected} were counted")
        self._send(count, last, payloads, 0)

    def _send(self, count: int, targets: list[Target], payloads: Payloads, backlog: int) -> None:
        """The topics take turns; slowly enough that none is dropped as a flood."""
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
        """Until no reader is further behind."""
        started = again = time.monotonic()
        counted = self._observer.rejected
        while any(sent - counted[name] > backlog for name, sent in self.sent.items()):
            if self._fleet.finished:
                raise click.ClickException("the run was over before the flood: take more --rounds")
            now = time.monotonic()
            if now - started > PATIENCE:
                raise click.ClickException(f"of {self.sent} only {counted} were counted")
            if now - again > REPLACED and drawn[0][0].topic == TOPICS.device(VICTIM, "status"):
                again = now
                self._repeat(drawn[0][1])
            self._link.publish(TOPICS.server_claim, ServerClaim(instance=time.time_ns()).encode())
            self._observer.take(0.1)

    def _repeat(self, payload: bytes) -> None:
        """Send a payload as the victim's status once more; the victim itself reads each of them."""
        self._link.publish(TOPICS.device(VICTIM, "status"), payload)
        self.sent[VICTIM] += 1
        self.repeated += 1


@dataclass(frozen=True)
class Flooded:
    """A run that was flooded."""

    report: dict[str, Any]
    topics: int
    sent: dict[str, int]  # to each reader
    repeated: int  # to the server, which may have counted the first ones too
    rejected: dict[str, int]  # by each reader, as it says
    growth: Bytes
    seconds: float  # that the flood took


def flooded_run(directory: Path, settings: Settings, count: int, seed: int) -> Flooded:
    """One fleet to its end; after its first rounds it is flooded, with a `count` of 0 only watched."""
    server = [*settings.server("sequential"), "--quarantine-after", "0"]  # all come under the victim's name
    with (
        Fleet(directory, server, settings.devices()) as fleet,
        closing(Link(fleet.broker.address, "vandal")) as listener,
        closing(Link(fleet.broker.address, "vandal")) as vandal,  # of one name: the other's session ends
    ):
        memory = PeakMemory(fleet.pids)
        captured = listen(listener, fleet)
        listener.close()
        calm = memory.peaks()
        spec = RunSpec.decode(captured[TOPICS.run][-1])
        payloads = Payloads(with_rare_ones(captured, spec.run), random.Random(seed))
        everywhere = targets(spec)
        observer = Observer(vandal, spec.rounds)
        flood = Flood(fleet, vandal, observer)
        started = time.monotonic()
        flood.send(count, everywhere, payloads)
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
    return Flooded(report, len(everywhere), flood.sent, flood.repeated, observer.rejected, growth, seconds)


def compare(undisturbed: Flooded, flooded: Flooded, payloads: int) -> dict[str, Any]:
    """The benchmark's figures: MB are 2^20 bytes."""
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
@click.option("--payloads", type=click.IntRange(min=1), default=1000, show_default=True, help="A topic.")
@click.option("--seed", default=1, show_default=True, help="Of the payloads; the fleet's own is always 1.")
@click.option(
    "--rounds",
    type=click.IntRange(min=CALM_ROUNDS + 1),
    default=250,
    show_default=True,
    help="They must outlast the flood.",
)
@click.option("--samples", default=64, show_default=True, help="Training images a device.")
@out_option
def main(payloads: int, seed: int, rounds: int, samples: int, out: Path | None) -> None:
    """Flood a fleet with malformed messages; compare with an undisturbed run."""
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
