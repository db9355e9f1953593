# SPDX-License-Identifier: Apache-2.0
"""Events in a fleet, from the difference between two states of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Literal

import msgspec

from splitee.cli.accuracy_words import describe_accuracies
from splitee.cli.plain_text import plain
from splitee.cli.update_words import describe_rollout, describe_update
from splitee.cli.words import devices, images
from splitee.protocol.accuracies import Accuracies
from splitee.protocol.fleet import ServerStatus
from splitee.protocol.fleet_view import DeviceView, FleetSnapshot
from splitee.protocol.inference import PredictedState
from splitee.protocol.rollouts import DeviceUpdate, Rollout, RolloutState

LONGEST_TEXT = 300  # characters of an event's text
Kind = Literal[
    "came",
    "offline",
    "online",
    "joined",
    "cut",
    "dismissed",
    "readmitted",
    "quarantined",
    "out-of-quarantine",
    "round-opened",
    "round-committed",
    "round-evaluated",
    "run-began",
    "run-finished",
    "server-offline",
    "server-online",
    "model-offered",
    "model-in-service",
    "model-failed",
    "model-rolled-back",
    "software-in-service",
    "software-failed",
    "software-rolled-back",
    "predicted-state",
    "rollout-began",
    "rollout-wave",
    "rollout-resumed",
    "rollout-paused",
    "rollout-stopped",
    "rollout-finished",
    "rollout-rolled-back",
    "rollout-expired",
    "broker-offline",
    "broker-online",
]
MODELS: Mapping[str, Kind] = {
    "offered": "model-offered",
    "in service": "model-in-service",
    "failed": "model-failed",
    "rolled back": "model-rolled-back",
}
SOFTWARE: Mapping[str, Kind] = {
    "in service": "software-in-service",
    "failed": "software-failed",
    "rolled back": "software-rolled-back",
}
ROLLOUTS: Mapping[RolloutState, Kind] = {
    "running": "rollout-resumed",
    "paused": "rollout-paused",
    "stopped": "rollout-stopped",
    "finished": "rollout-finished",
    "rolled back": "rollout-rolled-back",
    "expired": "rollout-expired",
}
PHASES = {
    "gather": "devices are gathered",
    "train": "training",
    "statistics": "BatchNorm's statistics are taken",
    "evaluate": "evaluation",
    "release": "models are released",
}


class Event(msgspec.Struct, frozen=True):
    """Something that has happened, at `time` in seconds since the epoch, to a device or to none."""

    time: float
    kind: Kind
    device: str | None
    text: str


def events_at_start(device: DeviceView) -> Iterator[Event]:
    """Of a device that was known before the page's start: only that it is offline, and since when."""
    if not device.online and device.seen is not None:
        yield _event(device.seen, "offline", device.id, "offline")


def events_of_device(before: DeviceView | None, after: DeviceView, now: float) -> Iterator[Event]:
    """Events between two states of a device; `before` is None for a new device.

    Each has the time of the device's last message: it happened no later.
    """
    time = min(after.seen or now, now)
    if before is None:
        if after.online:
            yield _event(time, "came", after.id, "online for the first time")
    elif before.online and not after.online:
        yield _event(time, "offline", after.id, "offline")
    elif after.online and not before.online:
        yield _event(time, "online", after.id, "online again")
    yield from _of_cut(before, after, time)
    yield from _of_model(before, after, now)
    if before is not None:
        yield from _of_software(before.update, after, now)
        yield from _of_predicted_state(before.predicted_state, after, now)


def _of_cut(before: DeviceView | None, after: DeviceView, time: float) -> Iterator[Event]:
    cut = None if before is None else before.cut
    if after.cut is None:
        return
    if cut is None:
        samples = "" if after.train_samples is None else f", {images(after.train_samples)} for training"
        yield _event(time, "joined", after.id, f"requests to join with cut {after.cut}{samples}")
    elif after.cut != cut:
        yield _event(time, "cut", after.id, f"is cut at {after.cut} from now on, was {cut}")
    if after.next_cut is not None and (before is None or after.next_cut != before.next_cut):
        yield _event(time, "cut", after.id, f"requests cut {after.next_cut} instead of {after.cut}")


def _of_model(before: DeviceView | None, after: DeviceView, now: float) -> Iterator[Event]:
    """The time is that of the device's own clock, which may be wrong, but is capped at this machine's."""
    model, was = after.model, None if before is None else before.model
    if model is None or (was is not None and (was.release, was.state) == (model.release, model.state)):
        return
    if model.state not in MODELS:
        return  # it is fetched or tried: the device's row shows that, and its result is an event
    of = f" of round {model.round}" if model.round else ""
    why = f": {model.reason}" if model.reason else ""
    time = min(model.since or now, now)
    yield _event(time, MODELS[model.state], after.id, f"model {model.release[:8]}{of} {model.state}{why}")


def _of_software(before: DeviceUpdate | None, after: DeviceView, now: float) -> Iterator[Event]:
    if before is None or after.update is None:
        return  # what is in service at first is no event
    was, update = before.software, after.update.software
    kind = SOFTWARE.get(update.state or "")
    if kind is not None and (was.latest, was.state) != (update.latest, update.state):
        yield _event(now, kind, after.id, describe_update("software", update))


def _of_predicted_state(was: PredictedState | None, after: DeviceView, now: float) -> Iterator[Event]:
    state = after.predicted_state
    if was is not None and state is not None and was.label != state.label:
        text = f"state {state.label} ({state.confidence:.2f}), was {was.label}"
        yield _event(min(state.since, now), "predicted-state", after.id, text)


def events_of_past(fleet: FleetSnapshot) -> Iterator[Event]:
    """Events before the page's start: the evaluated rounds whose times are known."""
    for point in fleet.history:
        if point.time:
            found = Accuracies(
                exit_accuracy=point.exit, trunk_accuracy=point.trunk, adaptive_accuracy=point.adaptive
            )
            yield _evaluated(point.time, point.round, found, 0)


def events_of_fleet(before: FleetSnapshot, after: FleetSnapshot, now: float) -> Iterator[Event]:
    """Events between two states of the fleet that belong to no device."""
    yield from _of_server(before.server, after.server, min(after.server_seen or now, now))
    if after.run is not None and (before.run is None or before.run.run != after.run.run):
        run = after.run
        text = f"run {run.run} began: {run.network}, {run.strategy}, {run.rounds} rounds"
        yield _event(now, "run-began", None, text)
    yield from _of_rounds(before, after, now)
    yield from _of_rollouts(before.rollouts, after.rollouts, now)


def _of_rollouts(before: Iterable[Rollout], after: Iterable[Rollout], now: float) -> Iterator[Event]:
    known = {(one.rollout, one.kind): one for one in before}
    for one in after:
        was, name = known.get((one.rollout, one.kind)), f"rollout {one.rollout}"
        if was is None:
            if one.state == "running":
                text = f"{name} began: {describe_rollout(one)}"
                yield _event(min(one.created, now), "rollout-began", None, text)
        elif was.state != one.state:
            why = f": {one.reason}" if one.reason else ""
            what = "resumed" if one.state == "running" else one.state
            yield _event(now, ROLLOUTS[one.state], None, f"{name} {what}{why}")
        elif one.wave > was.wave and one.wave <= len(one.waves):
            count = devices(one.waves[one.wave - 1].devices)
            yield _event(now, "rollout-wave", None, f"{name}: wave {one.wave} of {len(one.waves)}, {count}")


def _of_server(before: ServerStatus | None, after: ServerStatus | None, time: float) -> Iterator[Event]:
    if after is None:
        return
    was_online = before is not None and before.state == "online"
    if after.state == "offline":
        if was_online:
            yield _event(time, "server-offline", None, "the server is offline")
    elif not was_online:
        yield _event(time, "server-online", None, "the server is online")
    elif before is not None and before.instance != after.instance:
        yield _event(time, "server-online", None, "the server was started again")
    if before is None or before.state != "online" or after.state != "online":
        return  # a last will names no devices
    dismissed, was_dismissed = set(after.dismissed), set(before.dismissed)
    quarantined, was_quarantined = set(after.quarantined), set(before.quarantined)
    yield from _each(time, "dismissed", dismissed - was_dismissed, "dismissed: the run goes on without it")
    yield from _each(time, "readmitted", was_dismissed - dismissed, "let in again")
    yield from _each(time, "quarantined", quarantined - was_quarantined, "in quarantine: ignored from now on")
    yield from _each(time, "out-of-quarantine", was_quarantined - quarantined, "out of quarantine")


def _each(time: float, kind: Kind, ids: Iterable[str], text: str) -> Iterator[Event]:
    return (_event(time, kind, device, text) for device in sorted(ids))


def _of_rounds(before: FleetSnapshot, after: FleetSnapshot, now: float) -> Iterator[Event]:
    run, phase, metrics = after.run, after.phase, after.metrics
    if run is None:
        return
    is_same = before.run is not None and before.run.run == run.run
    committed = before.committed if is_same else 0
    if after.committed > committed:
        first, last = committed + 1, after.committed
        which = f"round {last}" if first == last else f"rounds {first} to {last}"
        yield _event(now, "round-committed", None, f"{which} of {run.rounds} committed")
    evaluated = before.metrics.round if is_same and before.metrics else 0
    if metrics is not None and metrics.round > evaluated:
        time = min(metrics.time or now, now)
        yield _evaluated(time, metrics.round, metrics.fleet, metrics.fleet.images)
    if phase is None or phase == before.phase:
        return
    opened = min(after.opened or now, now)
    if phase.phase == "finished":
        yield _event(opened, "run-finished", None, f"the run is finished after {after.committed} rounds")
    else:
        who = f", {devices(phase.participants)}" if phase.participants else ""
        text = f"round {phase.round} of {run.rounds}: {PHASES[phase.phase]}{who}"
        yield _event(opened, "round-opened", None, text)


def _evaluated(time: float, number: int, found: Accuracies, count: int) -> Event:
    return _event(
        time, "round-evaluated", None, f"round {number} evaluated: {describe_accuracies(found, count)}"
    )


def _event(time: float, kind: Kind, device: str | None, text: str) -> Event:
    return Event(time, kind, device, plain(text)[:LONGEST_TEXT])
