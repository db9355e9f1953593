# SPDX-License-Identifier: Apache-2.0
"""The retained messages of a small fleet, by topic."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from splitee.mqtt.events import Message
from splitee.protocol.encoding import JsonMessage
from splitee.protocol.fleet import (
    DeviceFigures,
    DeviceMetrics,
    DeviceStatus,
    Metrics,
    Profile,
    ServerStatus,
)
from splitee.protocol.fleet_view import DeviceView, FleetView
from splitee.protocol.rollouts import Rollout, RolloutState, Wave
from splitee.protocol.rounds import Commit, Participant, Participation, RoundOpen
from splitee.protocol.run_spec import RunSpec
from splitee.protocol.topics import Topics

NOW = 1_800_000_000.0
TOPICS = Topics("lab")
RUN = RunSpec(protocol=1, run="r1", network="resnet18", num_classes=10, rounds=5)
ROUND = RoundOpen(run="r1", round=2, attempt=1, phase="train", participants=1)
PART = Participation(
    run="r1", round=2, attempt=1, phase="train", part=Participant(cut=3, steps=62, base=1), room=8
)
COMMIT = Commit(run="r1", round=1, attempt=1, weights_sha256="1" * 64)
METRICS = Metrics(
    run="r1",
    round=1,
    rounds=5,
    seconds=20.0,
    devices={
        "pi-1": DeviceMetrics(
            cut=3, stage="layer1.1", train_samples=2000, exit_accuracy=0.5, trunk_accuracy=0.75
        )
    },
    batches_trained=62,
    duplicates_dropped=0,
)
FIGURES = DeviceFigures(run=METRICS.run, round=METRICS.round, figures=METRICS.devices["pi-1"])
SERVER = ServerStatus(state="online", instance=1, run="r1", doing="training", waiting_for=("pi-1",))
STATUS = DeviceStatus(
    state="online",
    instance=1,
    doing="training",
    round=2,
    step=31,
    steps=62,
    loss=0.5,
    batches=93,
    bytes=1000,
    time=NOW - 60,
)
PROFILE = Profile(
    protocol=1,
    instance=1,
    version="0.1.0",
    cut=3,
    class_names=("a", "b"),
    train_samples=2000,
    held_out_samples=100,
)
RETAINED: dict[str, JsonMessage] = {
    TOPICS.server_status: SERVER,
    TOPICS.run: RUN,
    TOPICS.round: ROUND,
    TOPICS.commit: COMMIT,
    TOPICS.metrics: replace(METRICS, devices={}),
    TOPICS.device("pi-1", "metrics"): FIGURES,
    TOPICS.device("pi-1", "inbox/participation"): PART,
    TOPICS.device("pi-1", "status"): STATUS,
    TOPICS.device("pi-1", "profile"): PROFILE,
}


def view_of(messages: dict[str, JsonMessage]) -> FleetView:
    view = FleetView("lab")
    for topic, message in messages.items():
        view.take(Message(topic, message.encode(), retained=True), NOW)
    return view


def device_of(view: FleetView) -> DeviceView:
    (device,) = view.snapshot().devices
    return device


def rollout(name: str = "spring", state: RolloutState = "running", **others: Any) -> Rollout:
    """A rollout of a model to 31 devices in three waves, in its second wave."""
    waves = (Wave(1, in_service=1), Wave(10, in_service=4, failed=1, asleep=2, late=1), Wave(20))
    usual = Rollout(name, "model", "barn-7", state, NOW - 900, NOW + 86_400, 2, 2, waves)
    return replace(usual, **others)
