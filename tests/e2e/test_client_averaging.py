# SPDX-License-Identifier: Apache-2.0
"""Client networks that are averaged over MQTT: the weights of one process, whatever is lost on the way."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from fleets import CUTS, Fleet, await_message, in_one_process

from splitee.mqtt.link import Link
from splitee.protocol.fleet import ServerStatus
from splitee.protocol.rounds import Commit, RoundDone
from splitee.protocol.topics import Topics
from splitee_lab.local.brokers import RunningBroker

FLAGS = ("--client-averaging", "layerwise")
PAIR = {"pi-1": 1, "pi-2": 2, "pi-3": 2}


@pytest.mark.parametrize(("how", "cuts"), [("layerwise", CUTS), ("same-cut", PAIR)])
def test_weights_of_an_averaging_fleet_equal_those_of_one_process(
    mosquitto_broker: RunningBroker, tmp_path: Path, how: str, cuts: dict[str, int]
) -> None:
    with Fleet(str(mosquitto_broker.address), f"mean-{how}", tmp_path) as fleet:
        fleet.server("--strategy", "averaging", "--client-averaging", how)
        fleet.three_devices(cuts)
        assert fleet.wait() == [0, 0, 0, 0]
        report = fleet.report()
    assert report["weights_sha256"] == in_one_process("averaging", "step", 2, averaging=how, cuts=cuts)
    assert report["rejected"] == 0


def test_weights_are_unchanged_by_kills_while_statistics_are_taken(
    mosquitto_broker: RunningBroker, tmp_path: Path
) -> None:
    """A device is frozen, so that the phase lasts; the server and another device are killed in it."""
    topics = Topics("mean-statistics")
    flags = (*FLAGS, "--server-momentum", "0.5")
    watcher = Link(mosquitto_broker.address, "statistics-watcher")
    watcher.subscribe(topics.server_status, topics.device("pi-1", "round-done"))
    watcher.open(5)
    with Fleet(str(mosquitto_broker.address), topics.fleet, tmp_path) as fleet:
        fleet.server(*flags, rounds=3)
        fleet.three_devices()
        done = topics.device("pi-1", "round-done")
        await_message(watcher, done, lambda payload: RoundDone.decode(payload).round == 2)
        with fleet.frozen("pi-1"):
            await_message(
                watcher,
                topics.server_status,
                lambda payload: "round 2 of 3: taking statistics" in ServerStatus.decode(payload).doing,
            )
            for name in ("pi-2", "server"):
                fleet.processes[name].kill()
                fleet.processes[name].wait()
            fleet.device("pi-2", CUTS["pi-2"], shard="2/3")
            fleet.server(*flags, rounds=3)
        assert fleet.wait() == [0, 0, 0, 0]
        report = fleet.report()
    watcher.close()
    expected = in_one_process("sequential", "step", 3, averaging="layerwise", server_momentum=0.5)
    assert report["weights_sha256"] == expected


def test_device_that_lost_its_state_gets_it_from_the_server(
    mosquitto_broker: RunningBroker, tmp_path: Path
) -> None:
    """Sequential: the server is killed, a device comes back with an empty card; the weights are the same.

    The soft labels that it learns from next come from the server too. Its images stay encoded, and threads
    decode them when it is killed.
    """
    topics = Topics("mean-lost")
    watcher = Link(mosquitto_broker.address, "mean-watcher")
    watcher.subscribe(topics.commit)
    watcher.open(5)
    flags = (*FLAGS, "--soft-labels", "1")
    with Fleet(str(mosquitto_broker.address), topics.fleet, tmp_path) as fleet:
        fleet.server(*flags, rounds=4)
        encoded = ("--memory", "1", "--workers", "2")
        for name in ("pi-1", "pi-3"):
            fleet.device(name, CUTS[name], shard=f"{name[-1]}/3")
        fleet.device("pi-2", CUTS["pi-2"], *encoded, shard="2/3")
        await_message(watcher, topics.commit, lambda payload: Commit.decode(payload).round >= 2)
        for name in ("pi-2", "server"):
            fleet.processes[name].kill()
            fleet.processes[name].wait()
        shutil.rmtree(tmp_path / "pi-2")
        fleet.device("pi-2", CUTS["pi-2"], *encoded, shard="2/3")
        fleet.server(*flags, rounds=4)
        assert fleet.wait() == [0, 0, 0, 0]
        report = fleet.report()
        assert fleet.log("pi-2").count("they stay encoded") == 2
    watcher.close()
    expected = in_one_process("sequential", "step", 4, averaging="layerwise", soft_labels=1.0)
    assert report["weights_sha256"] == expected
