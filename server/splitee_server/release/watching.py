# SPDX-License-Identifier: Apache-2.0
"""Watches a rollout for `splitee release` until it is over, whichever process carries it out."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from splitee.cli.words import devices
from splitee.errors import ModelError, Stalled
from splitee.mqtt.events import Message
from splitee.mqtt.port import Port
from splitee.protocol import routes
from splitee.protocol.gate import Gate
from splitee.protocol.rollouts import DeviceUpdate, Rollout, Rollouts, Update
from splitee.protocol.topics import Topics

DECIDED = ("in service", "failed", "rolled back")
TICK = 0.5  # seconds
SHOWN = 20  # devices that a message names


class Watch:
    """What a server publishes about one rollout.

    Attributes:
        rollout: its latest state; None: none was received.
        updates: of its devices, by their names.
    """

    def __init__(self, port: Port, topics: Topics, name: str) -> None:
        self._name = name
        self._gate = Gate(topics, (routes.ROLLOUTS, routes.DEVICE_UPDATE), accepts_cleared=True, log_first=0)
        self.rollout: Rollout | None = None
        self.all: tuple[Rollout, ...] | None = None
        self.updates: dict[str, Update] = {}
        port.subscribe(*self._gate.filters)

    def take(self, message: Message) -> None:
        received = self._gate.read(message)
        found = received.message if received is not None else None
        if received is not None and isinstance(found, DeviceUpdate):
            for one in (found.model, found.software):
                if one.rollout == self._name:
                    self.updates[received.device] = one
        elif isinstance(found, Rollouts):
            self.all = found.rollouts
            self.rollout = next((one for one in found.rollouts if one.rollout == self._name), self.rollout)

    @property
    def is_over(self) -> bool:
        return self.rollout is not None and self.rollout.state not in ("running", "paused")

    @property
    def decided(self) -> int:
        """Number of devices that have reported a result."""
        return sum(one.in_service + one.failed for one in self.rollout.waves) if self.rollout else 0

    @property
    def undecided(self) -> list[str]:
        return sorted(device for device, one in self.updates.items() if one.state not in DECIDED)

    def lines(self) -> list[str]:
        """The result on each device."""
        return [
            f"{device}: {one.state}{': ' if one.reason else ''}{one.reason}"
            for device, one in sorted(self.updates.items())
            if one.state in DECIDED
        ]

    def check(self) -> None:
        """Raises ModelError: it is not in service on all devices."""
        failed = [device for device, one in self.updates.items() if one.state in ("failed", "rolled back")]
        if failed:
            raise ModelError(f"not in service on {listed(sorted(failed))}; what was there before still is")
        if self.rollout is not None and self.rollout.state in ("stopped", "expired"):
            raise ModelError(f"rollout {self._name} is {self.rollout.state}: {self.rollout.reason}")
        if self.rollout is not None and self.rollout.state == "finished":
            replaced = sum(
                one.devices - one.in_service - one.failed - one.asleep - one.late
                for one in self.rollout.waves
            )
            if replaced > 0:
                raise ModelError(
                    f"not in service on {devices(replaced)}: another release has replaced it there"
                )


def wait_for(
    watch: Watch,
    receive: Callable[[float], object],
    show: Callable[[Watch], object],
    *,
    wait: float,
    stop: Callable[[], bool],
    hint: str,
) -> None:
    """Wait until the rollout is over.

    Args:
        receive: returns the next event within a number of seconds.
        show: shows the state of the rollout.
        wait: seconds after which it gives up.
        hint: what happens to the rollout then.

    Raises:
        Stalled: it takes longer, or the command is stopped.
    """
    deadline = time.monotonic() + wait
    while not watch.is_over:
        if stop():
            raise Stalled(f"stopped before the release was over: {hint}")
        if time.monotonic() > deadline:
            undecided = listed(watch.undecided) or "the server"
            raise Stalled(f"no report from {undecided} within {wait:.0f} s: {hint}")
        event = receive(TICK)
        if isinstance(event, Message):
            watch.take(event)
        show(watch)


def listed(names: Sequence[str]) -> str:
    """The first of them by name, and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
