# SPDX-License-Identifier: Apache-2.0
"""How `splitee release` follows the server's messages: when it ends, and with which error."""

from __future__ import annotations

from pathlib import Path

import pytest
from fakes import FakeClock, FakePort
from release_fleet import TOPICS, ReleaseFleet

from splitee.errors import ModelError, Stalled
from splitee.mqtt.events import Message
from splitee.protocol import routes
from splitee.protocol.rollouts import DeviceUpdate, Rollout, Rollouts, RolloutState, Update, UpdateState, Wave
from splitee_server.release.plans import AT_ONCE
from splitee_server.release.watching import SHOWN, Watch, wait_for


def watch(state: RolloutState, update: UpdateState, devices: int) -> Watch:
    found = Watch(FakePort(FakeClock()), TOPICS, "spring")
    rollout = Rollout("spring", "model", "v", state, 1.0, 2.0, 0, 1, (Wave(devices),))
    told = {routes.ROLLOUTS.topic(TOPICS): Rollouts((rollout,)).encode()}
    for number in range(devices):
        one = DeviceUpdate(model=Update(state=update, rollout="spring"))
        told[routes.DEVICE_UPDATE.topic(TOPICS, f"pi-{number:03}")] = one.encode()
    for topic, payload in told.items():
        found.take(Message(topic, payload, retained=True))
    return found


def end(found: Watch, *, wait: float = 10.0, stop: bool = False) -> None:
    wait_for(found, lambda _s: None, lambda _w: None, wait=wait, stop=lambda: stop, hint="it goes on")


def test_stopped_release_command_raises_stalled() -> None:
    with pytest.raises(Stalled, match="stopped before the release was over: it goes on"):
        end(watch("running", "offered", 3), stop=True)


def test_errors_about_a_large_fleet_name_only_the_first_devices() -> None:
    with pytest.raises(Stalled, match=f"pi-019 and {100 - SHOWN} more within 0 s: it goes on"):
        end(watch("running", "offered", 100), wait=0.0)
    stopped = watch("stopped", "failed", 100)
    end(stopped)
    with pytest.raises(ModelError, match=f"pi-019 and {100 - SHOWN} more; what was there before still is"):
        stopped.check()


def test_release_that_a_newer_one_has_replaced_does_not_count_as_in_service(tmp_path: Path) -> None:
    fleet = ReleaseFleet(tmp_path)
    first, *_ = fleet.begin("a", pace=AT_ONCE)
    fleet.report(first, "in service")
    fleet.begin("b", b"newer", AT_ONCE)
    fleet.settle()
    found = Watch(FakePort(FakeClock()), TOPICS, "a")
    for sent in fleet.port.sent:
        found.take(Message(sent.topic, sent.payload))
    end(found)
    with pytest.raises(ModelError, match="not in service on 3 devices: another release has replaced it"):
        found.check()
