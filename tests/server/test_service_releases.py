# SPDX-License-Identifier: Apache-2.0
"""Releases during training: the server carries them out beside the rounds, which do not change."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from virtual_fleet import TOPICS, VirtualFleet

from splitee.protocol import routes
from splitee.protocol.inference import ModelOffer, Serving
from splitee.protocol.release_orders import (
    PlannedFile,
    PlannedRelease,
    ReleaseOrder,
    ReleaseReply,
    ReleaseUpload,
    RolloutPlan,
)
from splitee.protocol.rollouts import Rollouts
from splitee.protocol.rounds import RoundOpen
from splitee_server.monitoring.observer import Observer
from splitee_server.rounds.policy import Policy
from splitee_server.rounds.progress import Progress

TWO = ("pi-1", "pi-2")
MODEL = b"model"
FILE = hashlib.sha256(MODEL).hexdigest()
PLAN = RolloutPlan(
    rollout="ordered",
    kind="model",
    expires=3600.0,
    files=(PlannedFile(FILE, len(MODEL)),),
    releases=(PlannedRelease("pi-9", FILE, FILE),),
).encode()
ORDER = ReleaseOrder(
    request=1,
    action="release",
    rollout="ordered",
    plan=hashlib.sha256(PLAN).hexdigest(),
    plan_size=len(PLAN),
)


class Told(Observer):
    def __init__(self) -> None:
        self.rollouts: list[Rollouts] = []

    def on_rollouts(self, rollouts: Rollouts) -> None:
        self.rollouts.append(rollouts)


class Patient(Observer):
    """While models are exported, on a thread in real time, it slows the fake clock down."""

    def tick(self, progress: Callable[[], Progress]) -> None:
        if progress().run.phase == "release":
            time.sleep(0.01)


def test_release_order_is_carried_out_without_changing_the_weights(tmp_path: Path) -> None:
    undisturbed = VirtualFleet(tmp_path / "undisturbed", *TWO, rounds=1).run()
    told = Told()
    fleet = VirtualFleet(tmp_path / "ordered", *TWO, rounds=1, observers=[told])

    def say(route: routes.Route, payload: bytes) -> None:
        fleet.port.deliver(route.topic(TOPICS, "pi-9"), payload)

    say(routes.SERVING, Serving(state="online", instance=1).encode())
    say(routes.RELEASE, ORDER.encode())
    for digest, data in ((ORDER.plan, PLAN), (FILE, MODEL)):
        say(routes.RELEASE_UPLOAD, ReleaseUpload(request=1, sha256=digest, offset=0, data=data).encode())
    report = fleet.run()
    replies = fleet.port.payloads(routes.RELEASED.topic(TOPICS))
    assert ReleaseReply.decode(replies[-1]).message == "rollout ordered: 1 device, at once"
    [offer] = fleet.port.payloads(routes.MODEL_OFFER.topic(TOPICS, "pi-9"))
    assert ModelOffer.decode(offer).release == FILE
    assert [one.rollout for one in told.rollouts[-1].rollouts] == ["ordered"]
    assert report["weights_sha256"] == undisturbed["weights_sha256"]


def test_malformed_install_clicks_are_counted_against_no_device(tmp_path: Path) -> None:
    fleet = VirtualFleet(tmp_path, *TWO, rounds=1)
    for _ in range(30):
        fleet.port.deliver(routes.INSTALL.topic(TOPICS, "pi-1"), b"{")
    report = fleet.run()
    assert fleet.rejected["server", "malformed"] == 30
    assert report["rejected"] == 30


@pytest.mark.slow(9)
@pytest.mark.xdist_group("exports")
def test_device_that_joins_after_the_last_round_is_not_in_the_report(tmp_path: Path) -> None:
    policy = Policy(devices=2, quorum=1, release=5.0)
    fleet = VirtualFleet(tmp_path, *TWO, "pi-3", policy=policy, observers=[Patient()], rounds=1, release=True)
    join = fleet.devices["pi-3"].join
    fleet.devices["pi-3"].join = lambda **_changed: None  # type: ignore[method-assign]

    def join_late(opened: RoundOpen) -> None:
        if opened.phase == "release":
            join()

    fleet.on_phase = join_late
    report = fleet.run()
    assert fleet.phases[-2:] == [("release", 1), ("finished", 1)]
    assert [device["id"] for device in report["devices"]] == list(TWO)
    assert fleet.devices["pi-3"].assignments != []
