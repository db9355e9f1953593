# SPDX-License-Identifier: Apache-2.0
"""A class folder that most devices had misspelt, put right before the first commit: with real processes."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from fleets import Fleet, await_message
from image_folders import write_photographs
from waiting import until

from splitee.errors import ExitCode
from splitee.mqtt.link import Link
from splitee.protocol.topics import Topics
from splitee_lab.local.brokers import RunningBroker


def test_run_finishes_with_class_names_corrected_before_the_first_commit(
    mosquitto_broker: RunningBroker, tmp_path: Path
) -> None:
    topics = Topics("misspelt")
    folders = {name: tmp_path / f"{name}-images" for name in ("pi-1", "pi-2", "pi-3")}
    for name, folder in folders.items():
        write_photographs(folder, {"glass": 20, "plastic" if name == "pi-3" else "platic": 20})
    watcher = Link(mosquitto_broker.address, "misspelt-watcher")
    watcher.subscribe(*(topics.device(name, leaf) for name in folders for leaf in ("profile", "features")))
    watcher.open(5)
    with Fleet(str(mosquitto_broker.address), topics.fleet, tmp_path) as fleet:

        def start(name: str) -> None:
            fleet.device(name, 2, "--data", str(folders[name]))

        def correct(name: str) -> None:
            (folders[name] / "platic").rename(folders[name] / "plastic")

        def joined(name: str) -> int:
            return fleet.log("server").count(f"{name} joined")

        fleet.server("--num-classes", "2", devices=2)
        start("pi-2")
        await_message(watcher, topics.device("pi-2", "profile"))
        fleet.processes["pi-2"].send_signal(signal.SIGSTOP)  # round 1 is not committed without it
        start("pi-1")
        await_message(watcher, topics.device("pi-1", "features"))
        start("pi-3")
        assert fleet.wait("pi-3") == [ExitCode.REJECTED]
        assert "the fleet [glass, platic] (set by pi-1, pi-2)" in fleet.log("pi-3")

        fleet.processes["pi-1"].kill()
        fleet.processes["pi-1"].wait()
        correct("pi-1")
        start("pi-1")
        until(lambda: "the fleet's class names are [glass, plastic] from now on" in fleet.log("server"))
        fleet.processes["pi-2"].send_signal(signal.SIGCONT)
        assert fleet.wait("pi-2") == [ExitCode.REJECTED]
        assert "the fleet [glass, plastic] (set by pi-1, pi-3)" in fleet.log("pi-2")
        correct("pi-2")
        until(lambda: joined("pi-1") == 2)
        fleet.processes["pi-1"].send_signal(signal.SIGSTOP)  # the run cannot end before all have joined
        start("pi-2")
        start("pi-3")
        until(lambda: (joined("pi-2"), joined("pi-3")) == (2, 1))
        fleet.processes["pi-1"].send_signal(signal.SIGCONT)
        assert fleet.wait() == [0, 0, 0, 0], fleet.log("server")
        report = fleet.report()
    watcher.close()
    assert [device["id"] for device in report["devices"]] == ["pi-1", "pi-2", "pi-3"]
    evaluation = json.loads((tmp_path / "server" / "evaluation.json").read_text())
    assert evaluation["class_names"] == ["glass", "plastic"]


def test_class_names_of_the_only_device_can_be_corrected(
    mosquitto_broker: RunningBroker, tmp_path: Path
) -> None:
    topics = Topics("misspelt-alone")
    folder = tmp_path / "images"
    write_photographs(folder, {"glass": 20, "platic": 20})
    watcher = Link(mosquitto_broker.address, "misspelt-alone-watcher")
    watcher.subscribe(topics.device("pi-1", "features"))
    watcher.open(5)
    with Fleet(str(mosquitto_broker.address), topics.fleet, tmp_path) as fleet:
        fleet.server("--num-classes", "3", "--steps", "300", devices=1, rounds=1)
        fleet.device("pi-1", 2, "--data", str(folder))
        await_message(watcher, topics.device("pi-1", "features"))
        fleet.processes["pi-1"].kill()
        fleet.processes["pi-1"].wait()
        (folder / "platic").rename(folder / "plastic")
        write_photographs(folder, {"paper": 20})  # and a class that was forgotten
        fleet.device("pi-1", 2, "--data", str(folder))
        assert fleet.wait() == [0, 0], fleet.log("server")
        assert "committed by 1 devices" in fleet.log("server").partition("from now on")[2]
    watcher.close()
    evaluation = json.loads((tmp_path / "server" / "evaluation.json").read_text())
    assert evaluation["class_names"] == ["glass", "paper", "plastic"]


@pytest.mark.slow(5)
def test_class_is_added_of_which_one_device_has_no_images(
    mosquitto_broker: RunningBroker, tmp_path: Path
) -> None:
    """Its folder is empty there, as the refusal of a device recommends."""
    topics = Topics("forgotten")
    folders = {name: tmp_path / f"{name}-images" for name in ("pi-1", "pi-2")}
    for folder in folders.values():
        write_photographs(folder, {"glass": 20, "plastic": 20})
    watcher = Link(mosquitto_broker.address, "forgotten-watcher")
    watcher.subscribe(*(topics.device(name, "features") for name in folders))
    watcher.open(5)
    with Fleet(str(mosquitto_broker.address), topics.fleet, tmp_path) as fleet:

        def start(name: str) -> None:
            fleet.device(name, 2, "--data", str(folders[name]))

        def stop(name: str) -> None:
            fleet.processes[name].kill()
            fleet.processes[name].wait()

        fleet.server("--num-classes", "3", "--steps", "300", devices=2, rounds=1)
        start("pi-1")
        start("pi-2")
        await_message(watcher, topics.device("pi-2", "features"))
        stop("pi-2")
        stop("pi-1")
        write_photographs(folders["pi-1"], {"paper": 20})
        (folders["pi-2"] / "paper").mkdir()
        start("pi-1")
        assert fleet.wait("pi-1") == [ExitCode.REJECTED]
        start("pi-2")
        assert fleet.wait("pi-2") == [ExitCode.REJECTED]
        assert "start it again, and its empty class folders count, too" in fleet.log("pi-2")
        start("pi-1")
        start("pi-2")
        assert fleet.wait() == [0, 0, 0], fleet.log("server")
        report = fleet.report()
    watcher.close()
    assert [device["id"] for device in report["devices"]] == ["pi-1", "pi-2"]
    evaluation = json.loads((tmp_path / "server" / "evaluation.json").read_text())
    assert evaluation["class_names"] == ["glass", "paper", "plastic"]
