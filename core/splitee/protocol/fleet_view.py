# SPDX-License-Identifier: Apache-2.0
"""The view of a fleet from its retained topics: takes messages in, and gives snapshots."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import msgspec

from splitee.errors import MalformedMessage
from splitee.mqtt.events import Message
from splitee.protocol import routes
from splitee.protocol.accuracies import ClassRecall, ConfusionMatrix, ReleasedThreshold
from splitee.protocol.encoding import JsonMessage
from splitee.protocol.fleet import (
    Capability,
    DeviceFigures,
    DeviceMetrics,
    Metrics,
    RoundSeconds,
    ServerStatus,
)
from splitee.protocol.gate import Gate, Received
from splitee.protocol.inference import PredictedState, Serving
from splitee.protocol.last_received import LastReceived, sent_at
from splitee.protocol.model_views import ModelInService, ReleaseView, releases_of
from splitee.protocol.overview import (
    MOST_CURVES,
    Baselines,
    DeviceHistory,
    DevicePoint,
    FleetConfusion,
    History,
    HistoryPoint,
    NetworkStage,
    NetworkStages,
    Timing,
    WaitedFor,
)
from splitee.protocol.rollouts import DeviceUpdate, Rollout, Rollouts
from splitee.protocol.rounds import Commit, Participation, RoundOpen
from splitee.protocol.routes import Route
from splitee.protocol.run_spec import RunSpec
from splitee.protocol.seasons import Season, Seasons
from splitee.protocol.topics import Topics
from splitee.protocol.traffic import Traffic, total

MAX_DEVICES = 10_000  # ids come from topics that anyone may write

OF_ALL_DEVICES = frozenset((routes.RUN, routes.ROUND, routes.METRICS))  # they change the views of all devices

M = TypeVar("M", bound=JsonMessage)
WATCHED = tuple(route for route in routes.ROUTES if "viewer" in route.readers)


@dataclass(frozen=True)
class DeviceView:
    """The last known state of one device; None: not reported yet. Accuracies are fractions.

    `held_out_samples`: the number of images for these.
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
    next_cut: int | None = None  # requested by the device, from the next commit on
    capability: Capability | None = None  # as its profiler measured it
    adaptive_accuracy: float | None = None
    held_out_samples: int = 0
    weakest_class: ClassRecall | None = None
    released: ReleasedThreshold | None = None
    predicted: int = 0  # images that it has classified
    offloaded: int = 0  # of these, the images that it has offloaded
    alone_accuracy: float | None = None  # of an exit that it trained alone before it joined
    traffic: Traffic | None = None  # of its current process, by purpose; None: not reported
    upload: float | None = None  # bytes per second, of a slow and busy link
    in_phase: bool = False  # it takes part in the current phase
    version: str | None = None  # release of its software
    temperature: float | None = None  # degrees Celsius
    memory: int | None = None  # bytes that its process uses
    memory_limit: int | None = None  # bytes that it may use
    waiting_since: float | None = None  # seconds since the epoch; the server waits for it
    model: ModelInService | None = None
    serving: Serving | None = None  # while it predicts
    confusion: ConfusionMatrix | None = None  # in the last evaluated round
    history: tuple[DevicePoint, ...] = ()  # of a small fleet's devices
    predicted_state: PredictedState | None = None  # while it predicts; its times are by this machine's clock
    update: DeviceUpdate | None = None  # what is in service and on its way, as the server knows it

    @property
    def done(self) -> float:
        """Completed rounds, plus the completed part of the current one; 1.5 is half of the second round."""
        if self.doing != "training" or not self.steps:
            return float(self.round)
        return max(self.round - 1, 0) + min(self.step / self.steps, 1.0)


@dataclass(frozen=True)
class FleetSnapshot:
    """The fleet at one moment, without dismissed devices.

    `run`, `phase` and `metrics` belong to the current run, or are None. The same holds for all fields after
    `malformed`, except `traffic` and `releases`, which devices report, and `rollouts`. Times are seconds
    since the epoch.
    """

    fleet: str
    server: ServerStatus | None
    run: RunSpec | None
    phase: RoundOpen | None
    committed: int
    metrics: Metrics | None
    devices: tuple[DeviceView, ...]
    malformed: int  # messages that were rejected
    opened: float | None = None  # when the phase was opened, by the server's clock
    waiting: tuple[WaitedFor, ...] = ()  # the longest first
    estimate: float | None = None  # when the run probably ends
    network_stages: tuple[NetworkStage, ...] = ()  # in their order: stage 1 is the first
    history: tuple[HistoryPoint, ...] = ()  # evaluated rounds
    baselines: Baselines | None = None
    seconds: RoundSeconds | None = None  # of the last evaluated round
    confusion: ConfusionMatrix | None = None  # of the fleet, in the last evaluated round
    traffic: Traffic | None = None  # of all devices' current processes; None: none reports it
    releases: tuple[ReleaseView, ...] = ()
    seasons: tuple[Season, ...] = ()  # earlier runs that the current run's weights come from, in their order
    server_seen: float | None = None  # when the server's status was published
    rollouts: tuple[Rollout, ...] = ()  # the newest first

    @property
    def empty(self) -> bool:
        """Whether this broker has no message of such a fleet."""
        return self.server is None and self.run is None and not self.devices and not self.rollouts

    @property
    def finished(self) -> bool:
        return self.phase is not None and self.phase.phase == "finished"


class FleetView:
    """Keeps the last message of each topic of one fleet, and never more than MAX_DEVICES devices."""

    def __init__(self, fleet: str) -> None:
        self._topics = Topics(fleet)
        self._gate = Gate(self._topics, WATCHED, accepts_cleared=True, log_first=0)
        self._of_fleet: dict[Route, JsonMessage | None] = {}  # the last message on other topics than devices'
        self._figures: dict[str, DeviceFigures] = {}
        self._parts: dict[str, Participation] = {}
        self._curves: dict[str, DeviceHistory] = {}
        self._updates: dict[str, DeviceUpdate] = {}
        self._devices: dict[str, LastReceived] = {}
        self._server_seen = 0.0
        self._views: dict[str, DeviceView] = {}  # those that are still up to date
        self._touched: set[str] | None = None  # by messages since the last `changes`; before the first: all

    @property
    def filters(self) -> tuple[str, ...]:
        """The topic filters to subscribe to."""
        return self._gate.filters

    def take(self, message: Message, now: float) -> None:
        """Take in one message; a malformed one is counted and changes nothing.

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
        """The fleet now; the view of an unchanged device is the same object as before."""
        found = self._members(sorted(self._devices))
        return self.overview([view for view in found.values() if view is not None])

    def changes(self) -> dict[str, DeviceView | None]:
        """The devices that may have changed since the last call; at the first call all.

        None: the device has left the fleet. A device without new messages costs nothing, unless a message
        about the whole fleet has arrived.
        """
        touched, self._touched = self._touched, set()
        if touched is None:
            return self._members(self._devices)
        return self._members(self._devices.keys() | touched - {""} if "" in touched else touched)

    def overview(self, devices: Sequence[DeviceView]) -> FleetSnapshot:
        """The fleet as it is now with `devices`, which the caller knows from `changes`."""
        run, server = self._last(routes.RUN, RunSpec), self._last(routes.SERVER_STATUS, ServerStatus)
        commit, metrics = self._current(routes.COMMIT, Commit), self._current_metrics()
        timing, history = self._current_timing(), self._current(routes.HISTORY, History)
        rollouts = self._last(routes.ROLLOUTS, Rollouts)
        network, seasons = (
            self._current(routes.NETWORK, NetworkStages),
            self._current(routes.SEASONS, Seasons),
        )
        return FleetSnapshot(
            fleet=self._topics.fleet,
            server=server,
            run=run,
            phase=self._current(routes.ROUND, RoundOpen),
            committed=commit.round if commit else 0,
            metrics=metrics,
            devices=tuple(devices),
            malformed=self._gate.rejected.total(),
            opened=timing.opened if timing else None,
            waiting=timing.waiting if timing else (),
            estimate=timing.estimate if timing else None,
            network_stages=network.stages if network else (),
            history=history.points if history else (),
            baselines=history.baselines if history else None,
            seconds=metrics.spent if metrics else None,
            confusion=self._current_confusion(metrics),
            traffic=_traffic(devices),
            releases=releases_of(device.model for device in devices),
            server_seen=self._server_seen or None,
            seasons=seasons.seasons if seasons else (),
            rollouts=rollouts.rollouts if rollouts else (),
        )

    def _members(self, ids: Iterable[str]) -> dict[str, DeviceView | None]:
        server, timing = self._last(routes.SERVER_STATUS, ServerStatus), self._current_timing()
        dismissed = set(server.dismissed if server else ())
        since = {waited.device: waited.since for waited in timing.waiting} if timing else {}
        metrics = self._current_metrics()
        found: dict[str, DeviceView | None] = {}
        for device in ids:
            last_received = self._devices.get(device)
            if last_received is None or not last_received.has_published or device in dismissed:
                found[device] = None
            else:
                found[device] = self._view(device, last_received, metrics, since.get(device))
        return found

    def _take(self, received: Received, now: float) -> None:
        route, device, message = received.route, received.device, received.message
        if not route.of_device:
            self._of_fleet[route] = message
            if route is routes.SERVER_STATUS:
                self._server_seen = sent_at(message.time, received.envelope, now) if message else 0.0
            if route in OF_ALL_DEVICES:
                self._views.clear()
            return
        self._views.pop(device, None)
        if route is routes.FIGURES:
            _keep(self._figures, device, message)
        elif route is routes.PARTICIPATION:
            _keep(self._parts, device, message)
        elif route is routes.DEVICE_HISTORY:
            _keep(self._curves, device, message, most=2 * MOST_CURVES)
        elif route is routes.DEVICE_UPDATE:
            _keep(self._updates, device, message)
        else:
            self._take_device(received, now)

    def _take_device(self, received: Received, now: float) -> None:
        device, message, envelope = received.device, received.message, received.envelope
        last_received = self._devices.get(device, LastReceived())
        if received.route is routes.STATUS:
            last_received = last_received.with_status(message, envelope, now)
        elif received.route is routes.SERVING:
            last_received = last_received.with_serving(message, envelope, now)
        elif received.route is routes.MODEL_REPORT:
            last_received = replace(last_received, report=message)
        elif received.route is routes.MODEL_OFFER:
            last_received = replace(last_received, offer=message)
        elif received.route is routes.PREDICTED_STATE:
            last_received = last_received.with_predicted_state(message, envelope, now)
        else:
            assert received.route is routes.PROFILE, f"{received.route.path} has no place in the view"
            last_received = last_received.with_profile(message)
        if not last_received.has_published and last_received.offer is None:
            self._devices.pop(device, None)
        elif device in self._devices or len(self._devices) < MAX_DEVICES:
            self._devices[device] = last_received
        else:
            raise MalformedMessage(f"more than {MAX_DEVICES} devices in one fleet")

    def _last(self, route: Route, kind: type[M]) -> M | None:
        message = self._of_fleet.get(route)
        return message if isinstance(message, kind) else None

    def _current(self, route: Route, kind: type[M]) -> M | None:
        """The latest message on a topic, if it belongs to the current run."""
        message, run = self._last(route, kind), self._last(routes.RUN, RunSpec)
        return message if message is not None and run is not None and _run_of(message) == run.run else None

    def _current_timing(self) -> Timing | None:
        """The timing of the current phase; a message that a killed server left retained is ignored."""
        timing, phase = self._current(routes.TIMING, Timing), self._current(routes.ROUND, RoundOpen)
        if timing is None or phase is None:
            return None
        of = (timing.round, timing.attempt, timing.phase)
        return timing if of == (phase.round, phase.attempt, phase.phase) else None

    def _current_confusion(self, metrics: Metrics | None) -> ConfusionMatrix | None:
        found = self._current(routes.CONFUSION, FleetConfusion)
        is_of_round = found is not None and metrics is not None and found.round == metrics.round
        return found.confusion if found is not None and is_of_round else None

    def _current_metrics(self) -> Metrics | None:
        """The fleet's figures with those of its devices that have arrived."""
        metrics = self._current(routes.METRICS, Metrics)
        if metrics is None:
            return None
        of_round = metrics.run, metrics.round
        figures = {
            device: latest.figures
            for device, latest in sorted(self._figures.items())
            if (latest.run, latest.round) == of_round
        }
        return msgspec.structs.replace(metrics, devices=figures)

    def _is_in_phase(self, device: str) -> bool:
        """Whether a device takes part in the current phase."""
        latest, current = self._parts.get(device), self._last(routes.ROUND, RoundOpen)
        if latest is None or latest.part is None or current is None:
            return False
        return (latest.run, latest.round, latest.attempt, latest.phase) == (
            current.run,
            current.round,
            current.attempt,
            current.phase,
        )

    def _curve(self, device: str, metrics: Metrics | None) -> tuple[DevicePoint, ...]:
        curve = self._curves.get(device)
        return curve.points if curve is not None and metrics is not None and curve.run == metrics.run else ()

    def _view(
        self, device: str, last_received: LastReceived, metrics: Metrics | None, waiting_since: float | None
    ) -> DeviceView:
        view = self._views.get(device)
        if view is None or view.waiting_since != waiting_since:
            view = self._views[device] = self._device(device, last_received, metrics, waiting_since)
        return view

    def _device(
        self, device: str, last_received: LastReceived, metrics: Metrics | None, waiting_since: float | None
    ) -> DeviceView:
        status, profile = last_received.status, last_received.profile
        measured: DeviceMetrics | None = metrics.devices.get(device) if metrics else None
        cut = profile.cut if profile else None
        return DeviceView(
            id=device,
            online=last_received.is_online,
            doing=last_received.doing,
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
            seen=last_received.seen or None,
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
            version=profile.version if profile else None,
            temperature=_plausible(status.temperature) if status else None,
            memory=status.memory if status else None,
            memory_limit=status.memory_limit if status else None,
            waiting_since=waiting_since,
            model=last_received.model,
            serving=last_received.serving if last_received.is_serving else None,
            confusion=self._figures[device].confusion if measured else None,
            history=self._curve(device, metrics),
            predicted_state=last_received.predicted_state if last_received.is_serving else None,
            update=self._updates.get(device),
        )


def _run_of(message: JsonMessage) -> str:
    run: str = getattr(message, "run", "")
    return run


def _keep(known: dict[str, M], device: str, message: M | None, most: int = MAX_DEVICES) -> None:
    """Store the server's latest message about a device, for at most `most` devices; None removes it."""
    if message is None:
        known.pop(device, None)
    elif device in known or len(known) < most:
        known[device] = message
    else:
        raise MalformedMessage(f"messages about more than {most} devices in one fleet")


def _traffic(devices: Sequence[DeviceView]) -> Traffic | None:
    """The total traffic of all devices that report theirs."""
    known = [device.traffic for device in devices if device.traffic is not None]
    return total(known) if known else None


def _plausible(degrees: float | None) -> float | None:
    """The temperature, or None if it is implausible: missing sensors read as thousands of degrees."""
    return degrees if degrees is not None and -100 <= degrees <= 1000 else None
