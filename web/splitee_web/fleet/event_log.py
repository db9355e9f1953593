# SPDX-License-Identifier: Apache-2.0
"""What has happened in a fleet: two looks at it, one after the other, in; events out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal

import msgspec

from splitee.cli.accuracy_words import accuracies_in_words
from splitee.cli.plain_text import plain
from splitee.protocol.accuracies import Accuracies
from splitee.protocol.fleet import ServerStatus
from splitee.protocol.fleet_view import DeviceView, FleetSnapshot

LONGEST = 300  # characters of an event's text
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
    "broker-lost",
    "broker-back",
]
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


def events_of_stranger(device: DeviceView) -> Iterator[Event]:
    """Of a device that was there before anybody looked: only that it is gone, and since when."""
    if not device.online and device.seen is not None:
        yield _event(device.seen, "offline", device.id, "offline")


def events_of_device(before: DeviceView | None, after: DeviceView, now: float) -> Iterator[Event]:
    """Between two looks at a device; `before` is None of one that was not there.

    Each has the time of the device's last word: what came while nobody looked happened no later.
    """
    time = min(after.seen or now, now)
    if before is None:
        if after.online:
            yield _event(time, "came", after.id, "online for the first time")
    elif before.online and not after.online:
        yield _event(time, "offline", after.id, "offline")
    elif after.online and not before.online:
        yield _event(time, "online", after.id, "online again")
    cut = None if before is None else before.cut
    if after.cut is not None and cut is None:
        samples = "" if after.train_samples is None else f", {after.train_samples} images for training"
        yield _event(time, "joined", after.id, f"asks to join with cut {after.cut}{samples}")
    elif after.cut is not None and after.cut != cut:
        yield _event(time, "cut", after.id, f"is cut at {after.cut} from now on, was {cut}")
    if after.next_cut is not None and (before is None or after.next_cut != before.next_cut):
        yield _event(time, "cut", after.id, f"asks for cut {after.next_cut} instead of {after.cut}")


def events_of_fleet(before: FleetSnapshot, after: FleetSnapshot, now: float) -> Iterator[Event]:
    """Between two looks at what is no device's."""
    yield from _of_server(before.server, after.server, min(after.server_seen or now, now))
    if after.run is not None and (before.run is None or before.run.run != after.run.run):
        run = after.run
        text = f"run {run.run} began: {run.network}, {run.strategy}, {run.rounds} rounds"
        yield _event(now, "run-began", None, text)
    yield from _of_rounds(before, after, now)


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
    dismissed, was_dismissed = set(after.dismissed), set(before.dismissed if before else ())
    quarantined, was_quarantined = set(after.quarantined), set(before.quarantined if before else ())
    yield from _each(time, "dismissed", dismissed - was_dismissed, "dismissed: the run goes on without it")
    if after.state == "online":  # a last will names nobody
        yield from _each(time, "readmitted", was_dismissed - dismissed, "let in again")
        yield from _each(time, "out-of-quarantine", was_quarantined - quarantined, "out of quarantine")
    yield from _each(time, "quarantined", quarantined - was_quarantined, "in quarantine: not read any more")


def _each(time: float, kind: Kind, devices: Iterable[str], text: str) -> Iterator[Event]:
    return (_event(time, kind, device, text) for device in sorted(devices))


def _of_rounds(before: FleetSnapshot, after: FleetSnapshot, now: float) -> Iterator[Event]:
    run, phase = after.run, after.phase
    if run is None:
        return
    same = before.run is not None and before.run.run == run.run
    committed = before.committed if same else 0
    if after.committed > committed:
        first = committed + 1
        which = f"round {first}" if first == after.committed else f"rounds {first} to {after.committed}"
        yield _event(now, "round-committed", None, f"{which} of {run.rounds} committed")
    evaluated = before.metrics.round if same and before.metrics else 0
    if after.metrics is not None and after.metrics.round > evaluated:
        found = after.metrics.fleet
        text = f"round {after.metrics.round} evaluated: {_accuracies(found, found.images)}"
        yield _event(now, "round-evaluated", None, text)
    if phase is None or phase == before.phase:
        return
    if phase.phase == "finished":
        yield _event(now, "run-finished", None, f"the run is finished after {after.committed} rounds")
    else:
        who = f", {phase.participants} devices" if phase.participants else ""
        text = f"round {phase.round} of {run.rounds}: {PHASES[phase.phase]}{who}"
        yield _event(now, "round-opened", None, text)


def _accuracies(found: Accuracies, images: int) -> str:
    return accuracies_in_words(found, images) or "no image"


def _event(time: float, kind: Kind, device: str | None, text: str) -> Event:
    return Event(time, kind, device, plain(text)[:LONGEST])
