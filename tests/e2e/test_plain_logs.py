# SPDX-License-Identifier: Apache-2.0
"""Texts of a hostile member or server in the logs of real processes."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import call
from fleets import Fleet, await_message, offer
from msgspec.structs import replace

from splitee.errors import ExitCode
from splitee.mqtt.link import Link
from splitee.protocol.fleet import DeviceStatus, ErrorReport, Profile
from splitee.protocol.run_spec import RunSpec
from splitee.protocol.topics import Topics
from splitee_lab.local.brokers import RunningBroker

EVIL = "\x1b[31mEVIL\x1b[0m\r\n00:00:00 INFO forged line"
PROFILE = Profile(
    protocol=1,
    instance=5,
    version="0.1.0",
    cut=1,
    class_names=(f"{EVIL} 1", f"{EVIL} 2"),
    train_samples=10,
    held_out_samples=2,
)


def test_hostile_device_cannot_forge_lines_in_the_log_of_the_server(
    mosquitto_broker: RunningBroker, tmp_path: Path
) -> None:
    topics = Topics("evil-names")
    evil = Link(mosquitto_broker.address, "evil")
    evil.subscribe(topics.server_status, topics.device("evil", "inbox/error"))
    evil.open(5)
    with Fleet(str(mosquitto_broker.address), topics.fleet, tmp_path) as fleet:
        fleet.server(devices=2, rounds=1)
        await_message(evil, topics.server_status)
        evil.publish(topics.device("evil", "status"), DeviceStatus(state="online", instance=5).encode())
        evil.publish(topics.device("evil", "profile"), PROFILE.encode())
        evil.publish(topics.device("evil", "profile"), replace(PROFILE, protocol=99, version=EVIL).encode())
        report = ErrorReport.decode(await_message(evil, topics.device("evil", "inbox/error")))
        assert EVIL in report.message
        fleet.processes["server"].terminate()
        assert fleet.wait("server") == [ExitCode.OK]
        lines = fleet.log("server").removesuffix("\n").split("\n")
    assert all(line.isprintable() for line in lines)
    assert not any(line.startswith("00:00:00 INFO forged") for line in lines)
    assert any(r"install release \x1b[31mEVIL\x1b[0m\r\n00:00:00 INFO forged line" in line for line in lines)
    evil.close()


@pytest.mark.mosquitto
def test_hostile_server_cannot_forge_lines_in_the_output_of_a_device(
    mosquitto_broker: RunningBroker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    topics = Topics("evil-run")
    network = f"os:abort{EVIL}"
    offer(
        mosquitto_broker.address,
        topics,
        RunSpec(protocol=1, run=EVIL, network=network, num_classes=10, rounds=1),
    )
    where = ("--broker", str(mosquitto_broker.address), "--fleet", topics.fleet, "--state", str(tmp_path))
    code, line = call(capsys, "device", "--id", "pi-1", "--data", "builtin:fashion-mnist", *where)
    assert code == ExitCode.NETWORK
    assert line.isprintable()
    assert r"--network os:abort\x1b[31mEVIL\x1b[0m\r\n00:00:00 INFO forged line if that is meant" in line
