# SPDX-License-Identifier: Apache-2.0
"""A fleet as its retained topics tell it: fold messages in, take a snapshot out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import msgspec

from splitee.errors import MalformedMessage
from splitee.mqtt.events import Message
from splitee.protocol import routes
from splitee.protocol.accuracies import ClassRecall, ReleasedThreshold
from splitee.protocol.fleet import (
    Capability,
    DeviceFigures,
    DeviceMetrics,
    DeviceStatus,
    Metrics,
    Profile,
    ServerStatus,
)
from splitee.protocol.gate import Gate, Received
from splitee.protocol.rounds import Commit, Participation, RoundOpen
from splitee.protocol.run_spec import RunSpec
from splitee.protocol.topics import Topics
from splitee.protocol.traffic import Traffic

MAX_DEVICES = 10_000  # ids come from topics that anyone may write

T = TypeVar("T")
WATCHED = tuple(route for route in routes.ROUTES if "viewer" in route.readers)


@dataclass(frozen=True)
class DeviceView:
    """One device as last heard; what it has not said yet is None. Accuracies are fractions.

    `held_out_samples`: images that they rest on.
    """

    id: str
    online: bool
    doing: str
    cut: int | None
    stage: str | None
    round: int
    step: int
    steps: int
    loss: float | None
    batches: int
    bytes: int
    exit_accuracy: float | None
    trunk_accuracy: float | None
    seen: float | None  # seconds since the epoch
    train_samples: int | None = None
    next_cut: int | None = None  # that it has asked for, and gets when a round is committed
    capability: Capability | None = None  # as its profiler measured it
    adaptive_accuracy: float | None = None
    held_out_samples: int = 0
    weakest_class: ClassRecall | None = None
    released: ReleasedThreshold | None = None
    predicted: int = 0  # images that it has classified
    offloaded: int = 0  # of these, those that it has asked the server about
    alone_accuracy: float | None = None  # of what it learnt by itself, before it joined
    traffic: Traffic | None = None  # of its present process, by purpose; None: it does not say
    upload: float | None = None  # bytes a second of a link that is slow, and busy
    in_phase: bool = False  # it takes part in what is under way

    @property
    def done(self) -> float:
        """Rounds behind it, with the part of the present one; 1.5 is half of the second round."""
        if self.doing != "training" or not self.steps:
            return float(self.round)
        return max(self.round - 1, 0) + min(self.step / self.steps, 1.0)


@dataclass(frozen=True)
class FleetSnapshot:
    """The fleet at one moment, without those that were dismissed.

    `run`, `phase` and `metrics` are of the present run, or None.
    """

    fleet: str
    server: ServerStatus | None
    run: RunSpec | None
    phase: RoundOpen | None
    committed: int
    metrics: Metrics | None
    devices: tuple[DeviceView, ...]
    malformed: int  # messages that were no message of their topic
    server_seen: float | None = None  # seconds since the epoch; when the server's status was published

    @property
    def empty(self) -> bool:
        """Nothing at this broker says that there is such a fleet."""
        return self.server is None and self.run is None and not self.devices

    @property
    def finished(self) -> bool:
        return self.phase is not None and self.phase.phase == "finished"


@dataclass(frozen=True)
class _Heard:
    """What one device has said."""

    status: DeviceStatus | None = None
    profile: Profile | None = None
    seen: float = 0.0

    def with_status(self, status: DeviceStatus | None, envelope: Message, now: float) -> _Heard:
        if status is None:
            return _Heard(profile=self.profile)
        seen = _seen(status.time, envelope, now)
        if status.state == "offline" and self.status is not None:
            # A last will knows nothing but that; what the device said before still holds.
            status = msgspec.structs.replace(self.status, state="offline")
        return replace(self, status=status, seen=seen)


def _seen(said: float, envelope: Message, now: float) -> float:
    """When a message was published; its sender's own clock is asked last: it may be wrong by years."""
    if not envelope.retained:
        return now
    return min(said, now) if envelope.age is None else now - envelope.age


class FleetView:
    """Keeps the last message of each topic of one fleet, and never more than MAX_DEVICES devices."""

    def __init__(self, fleet: str) -> None:
        self._topics = Topics(fleet)
        self._gate = Gate(self._topics, WATCHED, takes_cleared=True, log_first=0)
        self._server: ServerStatus | None = None
        self._run: RunSpec | None = None
        self._round: RoundOpen | None = None
        self._commit: Commit | None = None
        self._metrics: Metrics | None = None
        self._figures: dict[str, DeviceFigures] = {}
        self._parts: dict[str, Participation] = {}
        self._devices: dict[str, _Heard] = {}
        self._server_seen = 0.0
        self._touched: set[str] | None = None  # by messages since the last `changes`; before the first: all

    @property
    def filters(self) -> tuple[str, ...]:
        """What to subscribe to."""
        return self._gate.filters

    def take(self, message: Message, now: float) -> None:
        """Folds one message in; one that is malformed is counted and changes nothing.

        Args:
            now: seconds since the epoch, by this machine's clock.
        """
        received = self._gate.read(message)
        if received is None:
            return
        is_taken = self._gate.apply(received, lambda received: self._take(received, now))
        if is_taken and self._touched is not None:
            self._touched.add(received.device)

    def snapshot(self) -> FleetSnapshot:
        found = self._views(sorted(self._devices))
        return self.overview([view for view in found.values() if view is not None])

    def changes(self) -> dict[str, DeviceView | None]:
        """The devices that may look otherwise than at the last call, at the first call all.

        None: it is not of the fleet any more. Costs nothing for a device of which nothing has come, unless
        something of the fleet itself has.
        """
        touched, self._touched = self._touched, set()
        if touched is None:
            return self._views(self._devices)
        return self._views(self._devices.keys() | touched - {""} if "" in touched else touched)

    def overview(self, devices: Sequence[DeviceView]) -> FleetSnapshot:
        """The fleet as it is now with `devices`, which the caller knows from `changes`."""
        run = self._run
        return FleetSnapshot(
            fleet=self._topics.fleet,
            server=self._server,
            run=run,
            phase=self._round if run and self._round and self._round.run == run.run else None,
            committed=self._commit.round if run and self._commit and self._commit.run == run.run else 0,
            metrics=self._present_metrics(),
            devices=tuple(devices),
            malformed=self._gate.rejected.total(),
            server_seen=self._server_seen or None,
        )

    def _views(self, ids: Iterable[str]) -> dict[str, DeviceView | None]:
        dismissed = set(self._server.dismissed if self._server else ())
        metrics = self._present_metrics()
        return {
            device: self._device(device, self._devices[device], metrics)
            if device in self._devices and device not in dismissed
            else None
            for device in ids
        }

    def _take(self, received: Received, now: float) -> None:
        route, message = received.route, received.message
        if route is routes.SERVER_STATUS:
            self._server = message
            self._server_seen = 0.0 if message is None else _seen(message.time, received.envelope, now)
        elif route is routes.RUN:
            self._run = message
        elif route is routes.ROUND:
            self._round = message
        elif route is routes.COMMIT:
            self._commit = message
        elif route is routes.METRICS:
            self._metrics = message
        elif route is routes.FIGURES:
            self._keep(self._figures, received.device, message)
        elif route is routes.PARTICIPATION:
            self._keep(self._parts, received.device, message)
        else:
            self._take_device(received, now)

    @staticmethod
    def _keep(known: dict[str, T], device: str, message: T | None) -> None:
        """The server's last word on a device; None: it is taken back."""
        if message is None:
            known.pop(device, None)
        elif device in known or len(known) < MAX_DEVICES:
            known[device] = message
        else:
            raise MalformedMessage(f"words on more than {MAX_DEVICES} devices in one fleet")

    def _take_device(self, received: Received, now: float) -> None:
        device, message = received.device, received.message
        heard = self._devices.get(device, _Heard())
        if received.route is routes.STATUS:
            heard = heard.with_status(message, received.envelope, now)
        else:
            heard = replace(heard, profile=message)
        if heard == _Heard():
            self._devices.pop(device, None)
        elif device in self._devices or len(self._devices) < MAX_DEVICES:
            self._devices[device] = heard
        else:
            raise MalformedMessage(f"more than {MAX_DEVICES} devices in one fleet")

    def _present_metrics(self) -> Metrics | None:
        """The fleet's figures with those of its devices, as far as they have come."""
        run, metrics = self._run, self._metrics
        if run is None or metrics is None or metrics.run != run.run:
            return None
        of_round = metrics.run, metrics.round
        figures = {
            device: told.figures
            for device, told in sorted(self._figures.items())
            if (told.run, told.round) == of_round
        }
        return msgspec.structs.replace(metrics, devices=figures)

    def _is_in_phase(self, device: str) -> bool:
        """Whether a device takes part in what is under way."""
        told, current = self._parts.get(device), self._round
        if told is None or told.part is None or current is None:
            return False
        return (told.run, told.round, told.attempt, told.phase) == (
            current.run,
            current.round,
            current.attempt,
            current.phase,
        )

    def _device(self, device: str, heard: _Heard, metrics: Metrics | None) -> DeviceView:
        status, profile = heard.status, heard.profile
        measured: DeviceMetrics | None = metrics.devices.get(device) if metrics else None
        cut = profile.cut if profile else None
        return DeviceView(
            id=device,
            online=status is not None and status.state == "online",
            doing=status.doing if status else "",
            cut=cut,
            stage=measured.stage if measured and measured.cut == cut else None,
            round=status.round if status else 0,
            step=status.step if status else 0,
            steps=status.steps if status else 0,
            loss=status.loss if status else None,
            batches=status.batches if status else 0,
            bytes=status.bytes if status else 0,
            exit_accuracy=measured.exit_accuracy if measured else None,
            trunk_accuracy=measured.trunk_accuracy if measured else None,
            seen=heard.seen or None,
            train_samples=profile.train_samples if profile else None,
            next_cut=profile.next_cut if profile and profile.next_cut not in (0, cut) else None,
            capability=profile.capability if profile else None,
            adaptive_accuracy=measured.adaptive_accuracy if measured else None,
            held_out_samples=measured.held_out_samples if measured else 0,
            weakest_class=measured.weakest_class if measured else None,
            released=measured.released if measured else None,
            predicted=status.predicted if status else 0,
            offloaded=status.offloaded if status else 0,
            alone_accuracy=profile.alone_accuracy if profile else None,
            traffic=status.traffic if status else None,
            upload=status.upload if status else None,
            in_phase=self._is_in_phase(device),
        )
