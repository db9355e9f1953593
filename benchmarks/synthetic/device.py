# SPDX-License-Identifier: Apache-2.0
"""One synthetic device: the product's session and agent on a polled link, without training."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import cast

from benchmarks.synthetic.polled_link import PolledLink
from benchmarks.synthetic.training import NoMonitor, SyntheticStore, SyntheticTrainer
from benchmarks.synthetic.turns import Killed, TurnTaker
from splitee.mqtt.address import BrokerAddress
from splitee.protocol.rounds import Ack
from splitee.protocol.run_spec import RunSpec
from splitee.protocol.topics import Topics
from splitee_device.agent.agent import Agent
from splitee_device.agent.presence import offline
from splitee_device.agent.session import Session
from splitee_device.data.device_images import DeviceImages
from splitee_device.training.store import DeviceStore
from splitee_device.training.trainer import ClientTrainer

Doomed = Callable[[str, int], bool]
"""Whether a device, by its name, is to lose its process and connection in a round."""


class Device:
    """One device over several simulated processes; `start` begins each.

    Attributes:
        link: the link of the current process.
        deaths: rounds in which its process was ended.
    """

    def __init__(
        self,
        name: str,
        cut: int,
        address: BrokerAddress,
        topics: Topics,
        images: DeviceImages,
        is_doomed: Doomed,
    ) -> None:
        self.name = name
        self._cut = cut
        self._address = address
        self._topics = topics
        self._images = images
        self._is_doomed = is_doomed
        self._store = SyntheticStore()
        self._instances = itertools.count(time.time_ns())
        self._session: Session | None = None
        self.deaths: set[int] = set()

    def start(self) -> int:
        """Begin a process; returns the file descriptor of its socket. Raises OSError: no connection."""
        instance = next(self._instances)
        self._process = TurnTaker(lambda: self._participate(instance))
        self.link = PolledLink(
            self._address,
            f"splitee-{self._topics.fleet}-{self.name}",
            offline(self._topics, self.name, instance),
            self._process.pause,
        )
        return self.link.dial()

    @property
    def acknowledged(self) -> Ack | None:
        """The last acknowledgement of this device's batches."""
        return self._session.last_received.ack if self._session is not None else None

    @property
    def has_ended(self) -> bool:
        """Whether the process has finished or was killed."""
        return self._process.has_ended

    def go_on(self, now: float) -> None:
        """Resume the process if it has received something, or if its wait has timed out."""
        if not self.has_ended and self.link.is_due(now):
            self._process.resume()
        if self._process.error is not None:
            raise self._process.error

    @property
    def is_killed(self) -> bool:
        """Whether the process was killed before it had finished."""
        return self._process.is_killed

    def kill(self) -> None:
        """End the process where it is, and break its connection."""
        self._process.kill()
        self.link.vanish()

    def _participate(self, instance: int) -> None:
        self._session = session = Session(self.link, self._topics, self.name, instance)
        agent = Agent(
            session,
            session.await_run(),
            self._cut,
            self._trainer_at,
            cast(DeviceStore, self._store),
            NoMonitor(),
        )
        agent.take_part(self._images)

    def _trainer_at(self, spec: RunSpec, cut: int) -> ClientTrainer:
        return cast(ClientTrainer, SyntheticTrainer(spec, cut, self._images.data, self._vanish_midway))

    def _vanish_midway(self, number: int, step: int, steps: int) -> None:
        if step == steps // 2 and number not in self.deaths and self._is_doomed(self.name, number):
            self.deaths.add(number)
            self.link.vanish()
            raise Killed
