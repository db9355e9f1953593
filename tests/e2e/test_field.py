# SPDX-License-Identifier: Apache-2.0
"""Brokers and machines as in the field: killed processes leave nothing behind, and no process hangs."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest
from benchmarks.broker_store import abandoned_sessions, keeping
from benchmarks.throttling import ThrottlingProxy, Way
from fleets import CUTS, Fleet, await_message, in_one_process
from waiting import until

from splitee.errors import ExitCode
from splitee.mqtt.link import Link
from splitee.protocol.fleet import DeviceStatus, ServerStatus
from splitee.protocol.topics import Topics
from splitee_lab.local.brokers import MOSQUITTO_SETTINGS, RestartableBroker, RunningBroker

pytestmark = pytest.mark.mosquitto


@pytest.mark.slow(20)
def test_killed_servers_leave_no_session_behind(
    make_broker: Callable[..., RestartableBroker], public_path: Path, tmp_path: Path
) -> None:
    broker, topics = make_broker("mosquitto", keeping(MOSQUITTO_SETTINGS, public_path)), Topics("killed")
    watcher = Link(broker.address, "watches-killed")
    watcher.subscribe(topics.device("pi-2", "features"), topics.server_status)
    watcher.open(10)
    seen = {0}  # instances of the server; features from before the present instance do not count

    def is_another(payload: bytes) -> bool:
        status = ServerStatus.decode(payload)
        is_new = status.state == "online" and status.instance not in seen
        seen.add(status.instance)
        return is_new

    with Fleet(str(broker.address), topics.fleet, tmp_path) as fleet:
        fleet.three_devices()
        for is_last in (False, False, True):
            fleet.server("--steps", "20", rounds=2)
            await_message(watcher, topics.server_status, is_another)
            await_message(watcher, topics.device("pi-2", "features"))
            if not is_last:
                fleet.processes["server"].kill()
                fleet.processes["server"].wait()
        assert abandoned_sessions(broker.address) == 0
        assert fleet.wait() == [0, 0, 0, 0]
        assert fleet.report()["weights_sha256"] == in_one_process("sequential", "step", 2, steps=20)
        assert abandoned_sessions(broker.address) == 0
    watcher.close()


@pytest.mark.slow(20)
@pytest.mark.parametrize("way", get_args(Way))
def test_device_throttled_by_its_broker_trains_to_the_end(
    mosquitto_broker: RunningBroker, tmp_path: Path, way: Way
) -> None:
    address = mosquitto_broker.address
    proxy = ThrottlingProxy(address.host, address.port, 10, way)
    with Fleet(str(address), f"throttled-{way}", tmp_path) as fleet:
        fleet.server("--steps", "15", rounds=2)
        for name in ("pi-1", "pi-3"):
            fleet.device(name, CUTS[name], shard=f"{name[-1]}/3")
        fleet.device("pi-2", CUTS["pi-2"], "--broker", proxy.address, shard="2/3")
        assert fleet.wait() == [0, 0, 0, 0]
        assert proxy.complaints
        assert "from now on" in fleet.log("pi-2")
        assert fleet.report()["weights_sha256"] == in_one_process("sequential", "step", 2, steps=15)
    proxy.close()


@pytest.mark.slow(10)
def test_newer_of_two_devices_with_one_identity_stays_and_both_log_the_clash(
    mosquitto_broker: RunningBroker, tmp_path: Path
) -> None:
    topics = Topics("cloned")
    watcher = Link(mosquitto_broker.address, "watches-cloned")
    watcher.subscribe(topics.device("pi-1", "profile"))
    watcher.open(10)
    with Fleet(str(mosquitto_broker.address), topics.fleet, tmp_path) as fleet:
        fleet.server(devices=2, rounds=2)
        fleet.device("pi-1", 1, shard="1/2", process="card")
        await_message(watcher, topics.device("pi-1", "profile"))
        shutil.copytree(tmp_path / "card", tmp_path / "copy")
        fleet.device("pi-1", 1, shard="1/2", process="copy")
        assert fleet.wait("card") == [ExitCode.ID_IN_USE]
        assert ExitCode.ID_IN_USE.is_final
        assert "give each machine an id" in fleet.log("card")
        until(lambda: "another process that started earlier has the id 'pi-1'" in fleet.log("copy"))
        fleet.device("pi-2", 2, shard="2/2")
        assert fleet.wait("copy", "pi-2", "server") == [0, 0, 0]
    watcher.close()


def test_sighup_ends_a_device_in_order(mosquitto_broker: RunningBroker, tmp_path: Path) -> None:
    topics = Topics("hung-up")
    watcher = Link(mosquitto_broker.address, "watches-hung-up")
    watcher.subscribe(topics.device("pi-1", "status"))
    watcher.open(10)
    with Fleet(str(mosquitto_broker.address), topics.fleet, tmp_path) as fleet:
        fleet.device("pi-1", 1)
        until(lambda: "connected to broker" in fleet.log("pi-1"))
        fleet.processes["pi-1"].send_signal(signal.SIGHUP)
        assert fleet.wait() == [0]
        await_message(
            watcher,
            topics.device("pi-1", "status"),
            lambda payload: DeviceStatus.decode(payload).state == "offline",
        )
    watcher.close()
