# SPDX-License-Identifier: Apache-2.0
"""A finished run that is given more rounds: real processes, of which one stayed and one is started again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fleets import Fleet, await_message

from splitee.mqtt.link import Link
from splitee.protocol.rounds import RoundOpen
from splitee.protocol.topics import Topics
from splitee_lab.local.brokers import RunningBroker


def test_finished_run_continues_with_more_rounds_but_not_with_fewer(
    mosquitto_broker: RunningBroker, tmp_path: Path
) -> None:
    """Committed rounds are not taken back."""
    topics = Topics("longer")
    watcher = Link(mosquitto_broker.address, "longer-watcher")
    watcher.subscribe(topics.round)
    watcher.open(5)

    def is_at(phase: str) -> Callable[[bytes], bool]:
        return lambda payload: RoundOpen.decode(payload).phase == phase

    with Fleet(str(mosquitto_broker.address), topics.fleet, tmp_path) as fleet:
        fleet.server(devices=2, rounds=1)
        fleet.device("pi-1", 1, "--fresh", "--stay", "--baseline", shard="1/2")
        fleet.device("pi-2", 3, shard="2/2")
        assert fleet.wait("server", "pi-2") == [0, 0]
        assert RoundOpen.decode(await_message(watcher, topics.round, is_at("finished"))).round == 1
        run = fleet.report()["run"]

        fleet.server(devices=2, rounds=3)
        await_message(watcher, topics.round, is_at("gather"))
        fleet.device("pi-2", 3, shard="2/2")
        assert fleet.wait("server", "pi-2") == [0, 0], fleet.log("pi-1")
        report = fleet.report()
        assert (report["run"], report["rounds"]) == (run, 3)
        alone = {device["id"]: device["alone_accuracy"] for device in report["devices"]}
        assert 0 <= alone.pop("pi-1") <= 1
        assert alone == {"pi-2": None}
        fleet.processes["pi-1"].terminate()
        assert fleet.wait("pi-1") == [0]
        assert "the run has 3 rounds now, before 1" in fleet.log("pi-1")

        fleet.server(devices=2, rounds=2)
        assert fleet.wait("server") == [10]
        assert f"--rounds 2: 3 rounds of run {run} are committed" in fleet.log("server")
    watcher.close()
