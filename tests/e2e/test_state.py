# SPDX-License-Identifier: Apache-2.0
"""State directories: the run that they belong to, the process that may use them, and a finished run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from commands import call
from fleets import Fleet, offer

from splitee.durable import StateDirectory
from splitee.errors import ExitCode
from splitee.protocol.run_spec import RunSpec
from splitee.protocol.topics import Topics
from splitee_lab.local.brokers import RunningBroker, free_port

SPEC = RunSpec(protocol=1, run="run-a", network="tiny_networks:tiny", num_classes=10, rounds=1)


@contextmanager
def state(path: Path, facts: dict[str, object] | None = None) -> Iterator[StateDirectory]:
    directory = StateDirectory(path)
    if facts is not None:
        directory.save_facts(facts)
    yield directory
    directory.close()


def server(path: Path) -> tuple[str, ...]:
    """A server's flags with an unreachable broker: errors of the state are reported before."""
    nowhere = f"mqtt://127.0.0.1:{free_port()}"
    network = ("--network", "tiny_networks:tiny", "--input", "3x32x32")
    return "server", *network, "--state", str(path), "--broker", nowhere, "--connect-timeout", "1"


def test_server_refuses_the_state_of_a_run_with_other_settings(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with state(tmp_path, json.loads(SPEC.encode())):
        pass
    code, line = call(capsys, *server(tmp_path), "--window", "7")
    assert code == ExitCode.STATE
    assert "holds run run-a with other settings" in line
    assert "window 8 there, 7 here" in line
    assert "--fresh starts over" in line


def test_fresh_flag_discards_the_state_of_a_run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with state(tmp_path, json.loads(SPEC.encode())) as directory:
        directory.save_round(1, b"a round of run-a")
    code, _ = call(capsys, *server(tmp_path), "--rounds", "7", "--fresh")
    assert code == ExitCode.UNREACHABLE
    assert json.loads((tmp_path / "run.json").read_text())["rounds"] == 7
    assert not list(tmp_path.glob("round-*"))


def test_state_directory_in_use_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with state(tmp_path):
        code, line = call(capsys, *server(tmp_path))
    assert code == ExitCode.STATE
    assert f"state directory {tmp_path} is in use by another process" in line


def test_unwritable_state_directory_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, line = call(capsys, *server(tmp_path / "file" / "state"))
    assert code == ExitCode.STATE
    assert "choose another directory" in line


def test_device_refuses_the_state_of_another_run(
    capsys: pytest.CaptureFixture[str], mosquitto_broker: RunningBroker, tmp_path: Path
) -> None:
    topics = Topics("state-of-another-run")
    offer(mosquitto_broker.address, topics, SPEC)
    held = {"run": "run-before", "network": "resnet18", "cut": 3, "finished": False}
    with state(tmp_path, held):
        pass
    broker = ("--broker", str(mosquitto_broker.address), "--fleet", topics.fleet)
    data = ("--data", "builtin:fashion-mnist", "--limit", "64", "--network", SPEC.network, "--cut", "2")
    code, line = call(capsys, "device", "--id", "pi-1", "--state", str(tmp_path), *broker, *data)
    assert code == ExitCode.STATE
    assert "holds run run-before (resnet18, cut 3), unfinished" in line
    assert "this is run run-a (tiny_networks:tiny, cut 2)" in line
    assert "--fresh starts over" in line


def comparable(report: dict[str, Any]) -> dict[str, Any]:
    """A report without time and bytes."""
    left_out = ("seconds", "bytes", "bytes_published", "traffic")
    kept = {name: value for name, value in report.items() if name not in left_out}
    kept["devices"] = [
        {name: value for name, value in device.items() if name not in left_out}
        for device in report["devices"]
    ]
    return kept


def test_finished_run_started_again_reports_the_same_without_training(
    mosquitto_broker: RunningBroker, tmp_path: Path
) -> None:
    with Fleet(str(mosquitto_broker.address), "finished", tmp_path) as fleet:
        fleet.server(devices=1, rounds=1)
        fleet.device("pi-1", 2)
        assert fleet.wait() == [0, 0]
        first = fleet.report()
        fleet.server(devices=1, rounds=1)
        fleet.device("pi-1", 2)
        assert fleet.wait() == [0, 0]
        again = fleet.report()
    before, after = (report.pop("traffic")["up"] for report in (first, again))
    assert after.pop("protocol") > before.pop("protocol"), "they have said hello once more"
    assert after.pop("headers") > before.pop("headers")
    assert after == before, "and nothing else has travelled"
    assert comparable(again) == comparable(first)
    said = f"run {first['run']} finished: 1 rounds, weights {first['weights_sha256']}"
    assert fleet.log("server").count(said) == 2
    assert fleet.log("pi-1").count("run finished") == 2
    assert fleet.log("pi-1").count("round 1: training") == 1
