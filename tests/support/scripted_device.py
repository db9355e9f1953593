# SPDX-License-Identifier: Apache-2.0
"""A device's code against a scripted server: real training, no broker, no waiting."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from fakes import FakeClock, FakePort, Sent
from scripted_server import DEVICE, TOPICS, PhaseToOpen, ScriptedServer

from splitee.durable import StateDirectory
from splitee.networks.split import build_for
from splitee.protocol.fleet import DeviceStatus
from splitee.protocol.run_spec import RunSpec
from splitee_device.agent.agent import Agent
from splitee_device.agent.monitor import CutRequest
from splitee_device.agent.session import Session
from splitee_device.data.device_images import DeviceImages
from splitee_device.data.image_sets import ImageSet
from splitee_device.data.images import DeviceData
from splitee_device.training.store import DeviceStore
from splitee_device.training.trainer import ClientTrainer

SPEC = RunSpec(
    protocol=1,
    run="run-a",
    network="tiny_networks:tiny",
    num_classes=2,
    rounds=2,
    batch_size=2,
    window=2,
    seed=1,
    client_averaging="none",
)
WHOLE_RUN = (("train", 1), ("evaluate", 1), ("train", 2), ("evaluate", 2), ("finished", 2))
ONE_ROUND = (("train", 1), ("evaluate", 1), ("finished", 1))


class ScriptedMonitor:
    """A round monitor that requests `cut_request`, if any, after the first round."""

    def __init__(self, cut_request: CutRequest | None = None) -> None:
        self._cut_request = cut_request

    def steps(self, batches: Iterator[Any]) -> Iterator[Any]:
        return batches

    def end_round(self, number: int, cut: int) -> CutRequest | None:
        return self._cut_request if number == 1 else None


class Device:
    """A device, its port and its server."""

    def __init__(
        self,
        path: Path,
        spec: RunSpec = SPEC,
        script: tuple[PhaseToOpen, ...] = WHOLE_RUN,
        *,
        train: int = 4,
        held_out: int = 2,
        instance: int = 1,
        cut_request: CutRequest | None = None,
        cut: int = 1,
        lowest_cut: int = 1,
        **session: Any,
    ) -> None:
        self.clock = FakeClock()
        self.port = FakePort(self.clock)
        self.spec = spec
        self.data = DeviceData(some_images(train), some_images(held_out), ("a", "b"), ())
        self.server = ScriptedServer(self.port, spec, script, cut=cut)
        self.session = Session(self.port, TOPICS, DEVICE, instance, clock=self.clock, **session)
        self.directory = StateDirectory(path)
        self.trainers: list[ClientTrainer] = []
        self._cut_request = cut_request
        self._cut, self._lowest_cut = cut, lowest_cut

    def run(self) -> None:
        """Take part from the announcement of the run to its end."""
        images = DeviceImages(lambda _: self.data)
        store = DeviceStore(self.directory, DEVICE, images)
        spec = self.session.await_run()
        agent = Agent(
            self.session,
            spec,
            self._cut,
            self._trainer_at,
            store,
            ScriptedMonitor(self._cut_request),
            lowest_cut=self._lowest_cut,
            clock=self.clock,
        )
        agent.take_part(images)

    def _trainer_at(self, spec: RunSpec, cut: int) -> ClientTrainer:
        self.trainers.append(new_trainer(spec, cut, self.data))
        return self.trainers[-1]


def new_trainer(spec: RunSpec, cut: int, data: DeviceData) -> ClientTrainer:
    return ClientTrainer(build_for(spec), cut, spec, DEVICE, data)


def some_images(count: int) -> ImageSet:
    generator = np.random.default_rng(count)
    images = generator.integers(0, 256, (count, *SPEC.input_shape), np.uint8)
    return ImageSet(images, np.arange(count) % 2)


def steps_sent(device: Device) -> list[tuple[int, str, int]]:
    return [(batch.round, batch.phase, batch.step) for batch in device.server.batches]


def when(device: Device, doing: str, then: Callable[[], object]) -> None:
    """Call `then` once, at the first status of the device with this `doing`."""
    handle, is_called = device.port.on_sent, False

    def on_sent(sent: Sent) -> None:
        nonlocal is_called
        handle(sent)
        if sent.topic.endswith("/status") and DeviceStatus.decode(sent.payload).doing == doing:
            is_called, was_called = True, is_called
            if not was_called:
                then()

    device.port.on_sent = on_sent
