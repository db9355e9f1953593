# SPDX-License-Identifier: Apache-2.0
"""Runs that begin from trained weights, over MQTT: those of one process, whatever is killed on the way."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from fleets import CUTS, Fleet, await_message, in_one_process
from safetensors.torch import save_file

from splitee.mqtt.link import Link
from splitee.networks.split import build_network
from splitee.protocol.rounds import Assignment, Commit, RoundOpen, Weights
from splitee.protocol.routes import HELD_WEIGHTS, SYNC
from splitee.protocol.run_spec import RunSpec
from splitee.protocol.topics import Topics
from splitee_lab.local.brokers import RunningBroker


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """Weights of the fleet's network, but not those of its seed."""
    path = tmp_path / "trained.safetensors"
    save_file(build_network("tiny_networks:tiny", num_classes=10, seed=9).module.state_dict(), path)
    return path


@pytest.mark.mosquitto
@pytest.mark.parametrize(
    ("strategy", "averaging", "freeze"), [("sequential", "none", 0), ("averaging", "layerwise", 2)]
)
def test_weights_are_unchanged_by_kills_while_first_weights_are_sent(
    mosquitto_broker: RunningBroker, tmp_path: Path, weights: Path, strategy: Any, averaging: Any, freeze: int
) -> None:
    """A device and then the server are killed at its request for them; the server restarts without a file."""
    expected = in_one_process(strategy, "step", 2, averaging=averaging, weights=str(weights), freeze=freeze)
    topics = Topics(f"first-{strategy}")
    watcher = Link(mosquitto_broker.address, f"watches-{topics.fleet}")
    requests = SYNC.topic(topics, "pi-2")
    watcher.subscribe(requests)
    watcher.open(5)
    flags = ("--strategy", strategy, "--client-averaging", averaging, "--freeze", str(freeze))
    flags += ("--weights", str(weights))
    with Fleet(str(mosquitto_broker.address), topics.fleet, tmp_path) as fleet:
        fleet.server(*flags)
        fleet.three_devices()
        for name in ("pi-2", "server"):
            await_message(watcher, requests, lambda payload: b"client." in payload)
            fleet.processes[name].kill()
            fleet.processes[name].wait()
            if name == "pi-2":
                fleet.device("pi-2", CUTS["pi-2"], shard="2/3")
        weights.unlink()
        fleet.server(*flags)
        assert fleet.wait() == [0, 0, 0, 0], fleet.log("server")
        report = fleet.report()
    watcher.close()
    assert report["weights_sha256"] == expected
    assert report["rejected"] == 0


@pytest.mark.mosquitto
def test_settings_are_settled_before_round_1_and_survive_a_lost_device_state(
    mosquitto_broker: RunningBroker, tmp_path: Path, weights: Path
) -> None:
    """A device loses its card: it gets the first weights again, and trains all again to the same bits."""
    expected = in_one_process("sequential", "step", 3, weights=str(weights), freeze="auto", normalize="fleet")
    flags = ("--weights", str(weights), "--freeze", "auto", "--normalize", "fleet")
    topics = Topics("settled")
    watcher = Link(mosquitto_broker.address, "watches-settled")
    sent = HELD_WEIGHTS.topic(topics, "pi-3")
    watcher.subscribe(topics.run, topics.round, topics.commit, sent)
    watcher.open(5)
    with Fleet(str(mosquitto_broker.address), topics.fleet, tmp_path) as fleet:
        fleet.server(*flags, rounds=3)
        fleet.three_devices()
        settled = RunSpec.decode(await_message(watcher, topics.run, is_settled))
        await_message(watcher, topics.round, opens_round_1)
        await_message(watcher, topics.commit, lambda payload: Commit.decode(payload).round >= 1)
        fleet.processes["pi-3"].kill()
        fleet.processes["pi-3"].wait()
        shutil.rmtree(tmp_path / "pi-3")
        fleet.device("pi-3", CUTS["pi-3"], shard="3/3")
        assert Weights.decode(await_message(watcher, sent)).round == 0, "the first weights"
        assert fleet.wait() == [0, 0, 0, 0], fleet.log("server")
        report = fleet.report()
    watcher.close()
    assert report["weights_sha256"] == expected
    run = json.loads((tmp_path / "server" / "run.json").read_text())
    assert (run["frozen"], run["settled"]) == (2, True)
    assert run["mean"] != [0.5] and len(run["mean"]) == len(run["std"]) == 3
    assert (settled.frozen, list(settled.mean), list(settled.std)) == (2, run["mean"], run["std"])
    held = json.loads((tmp_path / "pi-1" / "run.json").read_text())["spec"]
    assert (held["frozen"], held["mean"]) == (run["frozen"], run["mean"])


@pytest.mark.mosquitto
def test_first_weights_are_announced_again_once_the_exits_of_the_fleet_are_known(
    mosquitto_broker: RunningBroker, tmp_path: Path, weights: Path
) -> None:
    """The exits of all cuts belong to the weights that a device begins from; none of them is rejected."""
    expected = in_one_process("sequential", "step", 1, averaging="layerwise", weights=str(weights))
    topics = Topics("exits-settled")
    watcher = Link(mosquitto_broker.address, f"watches-{topics.fleet}")
    plan = topics.device("pi-3", "inbox/plan")
    watcher.subscribe(topics.round, plan)
    watcher.open(5)
    with Fleet(str(mosquitto_broker.address), topics.fleet, tmp_path) as fleet:
        fleet.server("--weights", str(weights), "--client-averaging", "layerwise", rounds=1)
        fleet.three_devices()
        before = Assignment.decode(await_message(watcher, plan)).first
        await_message(watcher, plan, lambda payload: Assignment.decode(payload).first not in (None, before))
        await_message(watcher, topics.round, opens_round_1)
        assert fleet.wait(timeout=60) == [0, 0, 0, 0], fleet.log("server")
        assert fleet.report()["weights_sha256"] == expected
        assert "rejected" not in fleet.log("pi-3")
    watcher.close()
    assert before is not None


def opens_round_1(payload: bytes) -> bool:
    opened = RoundOpen.decode(payload)
    return (opened.round, opened.phase) == (1, "train")


def is_settled(run: bytes) -> bool:
    return RunSpec.decode(run).settled
