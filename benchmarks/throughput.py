# SPDX-License-Identifier: Apache-2.0
"""What does the server add to training? Its CPU seconds divided by those of the bare torch loop.

    python -m benchmarks.throughput [--strategy sequential] [--codec fp16]

A real service receives the devices' messages from a port without a broker, decodes them, trains the trunk of
resnet18 at 32 pixels, and acknowledges them. In the same process and on one thread, a plain loop trains the
same trunk on the same batches, which are tensors already, with the same optimizer. The two take turns of a
few batches, so that other load on the machine disturbs both equally; the median of the turns counts. The
result also has the time of decoding, and that of an optimizer step, `fused` (as in runs) and not.

Prints one JSON line, and exits with 1 if the ratio is above its bound.
"""

from __future__ import annotations

import json
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import click
import torch
from msgspec.structs import replace
from torch import Tensor

from benchmarks.bare_loop import BareLoop, made_up
from splitee.cli.run_flags import build_run_spec
from splitee.durable import StateDirectory
from splitee.mqtt.events import Event, Message
from splitee.mqtt.meter import Meter
from splitee.networks.split import build_for
from splitee.protocol import routes
from splitee.protocol.codecs import CODECS
from splitee.protocol.cut_batch import CutBatch
from splitee.protocol.fleet import DeviceStatus, Profile
from splitee.protocol.rounds import Ack, Features, Participation, RoundDone, RoundOpen
from splitee.protocol.run_spec import RunSpec
from splitee.protocol.sender_limits import SenderLimits
from splitee.protocol.topics import PROTOCOL, Topics
from splitee.training.optimizer import make_optimizer
from splitee.training.tensors import tensor_of
from splitee_server.rounds.checkpoints import Checkpoints
from splitee_server.rounds.policy import Policy
from splitee_server.service import Service

# Bounding the gradient's norm reads all gradients once more: 0.04. Decoding, events, acknowledgements and a
# copy of BatchNorm's statistics: 0.01. Another 0.05 is allowed for other load on the machine.
MOST = 1.1
CUTS = {"pi-1": 3, "pi-2": 5, "pi-3": 7}
TOPICS = Topics("throughput")
TURN = 6  # batches per side: two of each device
WARM_UP = 3  # first turns, which do not count
CLASSES = ("a", "b", "c", "d", "e", "f", "g", "h", "i", "j")


class ReadyPort:
    """A port without a broker, which delivers prepared messages of all devices within their windows.

    After each turn of the server, the bare loop takes its turn.

    Attributes:
        turns: CPU seconds of the server and of the bare loop, per turn.
    """

    connected = alive = True
    max_packet = 1 << 26
    part_size = max_packet

    def __init__(self, spec: RunSpec, batches: dict[str, CutBatch], bare: BareLoop) -> None:
        self.meter: Meter | None = None
        self.turns: list[tuple[float, float]] = []
        self._parts: dict[str, Participation] = {}
        self._spec = spec
        self._batches = batches
        self._bare = bare
        self._events: deque[Event] = deque()
        self._ready: dict[str, deque[bytes]] = {}
        self._trained = dict.fromkeys(batches, 0)
        self._begun = 0.0
        for device in batches:
            profile = Profile(
                protocol=PROTOCOL,
                instance=1,
                version="1",
                cut=CUTS[device],
                class_names=CLASSES,
                train_samples=spec.steps * spec.batch_size,
                held_out_samples=0,
            )
            self._deliver(routes.STATUS, device, DeviceStatus(state="online", instance=1).encode())
            self._deliver(routes.PROFILE, device, profile.encode())

    def subscribe(self, *filters: str) -> None: ...

    def unsubscribe(self, *filters: str) -> None: ...

    def receive(self, timeout: float | None) -> Event | None:
        if sum(self._trained.values()) >= (len(self.turns) + 1) * TURN:
            self._take_turn()
        return self._events.popleft() if self._events else None

    def publish(self, topic: str, payload: bytes | memoryview | bytearray, **_properties: Any) -> bool:
        found = routes.find_route(TOPICS, topic)
        if found is not None and found[0] is routes.PARTICIPATION:
            self._parts[found[1]] = Participation.decode(bytes(payload))
        elif topic == TOPICS.round and not self._ready:
            self._open(RoundOpen.decode(bytes(payload)))
        elif found is not None and found[0] is routes.ACK:
            self._on_ack(found[1], Ack.decode(bytes(payload)))
        return True

    def _open(self, opened: RoundOpen) -> None:
        """Encode all messages of the round, then deliver a window of each device and start the first turn."""
        if opened.phase != "train":
            return
        for device, batch in self._batches.items():
            part = self._parts[device].part
            assert part is not None
            self._ready[device] = deque(
                batch.message(self._spec, opened, "train", step).encode() for step in range(part.steps)
            )
            done = RoundDone(
                run=opened.run,
                round=opened.round,
                attempt=opened.attempt,
                digest="0" * 64,
                batches=part.steps,
                bytes=1,
                loss=1.0,
                accuracy=0.5,
                seconds=1.0,
                phase="train",
            )
            self._ready[device].append(done.encode())
        for device, ready in self._ready.items():
            for _ in range(self._parts[device].room):
                self._deliver(routes.FEATURES, device, ready.popleft())
        self._begun = time.thread_time()

    def _on_ack(self, device: str, ack: Ack) -> None:
        """Deliver a message for each newly acknowledged batch."""
        for _ in range(ack.step - self._trained[device]):
            if ready := self._ready[device]:
                self._deliver(
                    routes.FEATURES if len(ready) > 1 else routes.ROUND_DONE, device, ready.popleft()
                )
        self._trained[device] = ack.step

    def _take_turn(self) -> None:
        served = time.thread_time()
        self._bare.train(TURN)
        ended = time.thread_time()
        self.turns.append((served - self._begun, ended - served))
        self._begun = time.thread_time()

    def _deliver(self, route: routes.Route, device: str, payload: bytes) -> None:
        self._events.append(Message(route.topic(TOPICS, device), payload))


def serve(spec: RunSpec, port: ReadyPort, folder: Path) -> None:
    """Serve the run of `spec` to its end."""
    directory = StateDirectory(folder)
    checkpoints = Checkpoints(directory)
    opened, limits = checkpoints.open(spec, fresh=True), SenderLimits(TOPICS)
    policy, network = Policy(devices=len(CUTS), quorum=1), build_for(opened)
    service = Service(
        port, TOPICS, opened, network, checkpoints, policy, instance=1, stop=lambda: False, limits=limits
    )
    service.run()
    directory.close()


def typical_ms(work: Callable[[], object], times: int = 30) -> float:
    """Median CPU milliseconds of a call of `work` in this thread, without the first fifth of the calls."""
    taken = []
    for _ in range(times):
        begun = time.thread_time()
        work()
        taken.append(time.thread_time() - begun)
    return 1e3 * median(taken[times // 5 :])


def decoding_ms(spec: RunSpec, batches: dict[str, CutBatch]) -> float:
    """CPU milliseconds to decode a message to tensors, the mean over the devices."""
    opened = RoundOpen(run=spec.run, round=1, attempt=1, phase="train")
    found = []
    for batch in batches.values():
        payload = batch.message(spec, opened, "train", 0).encode()

        def decode(payload: bytes = payload, shape: tuple[int, ...] = batch.features.shape[1:]) -> Tensor:
            read = CutBatch.of(Features.decode(payload), spec, shape)
            tensor_of(read.labels)
            return tensor_of(read.features)

        found.append(typical_ms(decode))
    return sum(found) / len(found)


def optimizer_ms(spec: RunSpec) -> float:
    """CPU milliseconds of an optimizer step on all weights of the network."""
    parameters = list(build_for(spec).module.parameters())
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, 1e-3)
    return typical_ms(make_optimizer(parameters, spec).step)


def measure(spec: RunSpec) -> dict[str, Any]:
    """The benchmark's figures."""
    network = build_for(spec)
    batches = {
        device: made_up(spec, network.stages[cut - 1].feature_shape, cut) for device, cut in CUTS.items()
    }
    del network
    port = ReadyPort(
        spec, batches, BareLoop(spec, {CUTS[device]: batch for device, batch in batches.items()})
    )
    with TemporaryDirectory() as folder:
        serve(spec, port, Path(folder))
    counted = port.turns[WARM_UP:]
    ratio = median(served / bare for served, bare in counted)
    served, bare = (1e3 * median(side) / TURN for side in zip(*counted, strict=True))
    decoding = decoding_ms(spec, batches)
    return {
        "benchmark": "throughput",
        "strategy": spec.strategy,
        "codec": spec.codec,
        "turns": len(counted),
        "ratio": round(ratio, 3),
        "bound": MOST,
        "server_ms": round(served, 2),
        "bare_ms": round(bare, 2),
        "decode_ms": round(decoding, 2),
        "rest_ms": round(bare * (ratio - 1) - decoding, 2),
        "optimizer_ms": {
            "fused": round(optimizer_ms(replace(spec, fused=True)), 2),
            "unfused": round(optimizer_ms(replace(spec, fused=False)), 2),
        },
        "passed": ratio <= MOST,
    }


@click.command()
@click.option("--strategy", type=click.Choice(["sequential", "averaging"]), default="sequential")
@click.option("--codec", type=click.Choice(CODECS), default="fp16", show_default=True)
@click.option("--batches", type=click.IntRange(min=8), default=48, show_default=True, help="Per device.")
def main(strategy: str, codec: str, batches: int) -> None:
    """Measure the CPU time of a server, relative to training alone."""
    torch.set_num_threads(1)
    spec = build_run_spec(
        network="resnet18",
        num_classes=len(CLASSES),
        input_shape=(3, 32, 32),
        rounds=1,
        steps=batches,
        strategy=strategy,
        codec=codec,
        client_averaging="none",
    )
    result = measure(spec)
    click.echo(json.dumps(result))
    sys.exit(not result["passed"])


if __name__ == "__main__":
    main()
