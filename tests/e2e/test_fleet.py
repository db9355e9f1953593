# SPDX-License-Identifier: Apache-2.0
"""Real processes on real brokers: a fleet trains, and gives what one process gives, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psutil
import pytest
from fleets import Fleet, in_one_process

from splitee.mqtt.events import Message
from splitee.mqtt.link import Link
from splitee.protocol.fleet import Metrics
from splitee.protocol.topics import Topics
from splitee_lab.local.brokers import RunningBroker


@pytest.mark.parametrize(
    ("kind", "strategy", "order"),
    [
        pytest.param("mosquitto", "sequential", "step", marks=pytest.mark.mosquitto),
        pytest.param("mosquitto", "sequential", "device", marks=pytest.mark.mosquitto),
        pytest.param("mosquitto", "averaging", "step", marks=pytest.mark.mosquitto),
        ("embedded", "sequential", "step"),
    ],
)
def test_weights_of_a_fleet_equal_those_of_one_process(
    request: pytest.FixtureRequest, tmp_path: Path, kind: str, strategy: str, order: str
) -> None:
    broker: RunningBroker = request.getfixturevalue(f"{kind}_broker")
    with Fleet(str(broker.address), f"same-{strategy}-{order}", tmp_path) as fleet:
        fleet.server("--strategy", strategy, "--order", order)
        fleet.three_devices()
        assert fleet.wait() == [0, 0, 0, 0]
        report = fleet.report()
    assert report["weights_sha256"] == in_one_process(strategy, order, rounds=2)
    assert report["batches_trained"] == report["batches_published"] == 2 * 3 * 6
    assert report["rejected"] == 0
    assert [device["cut"] for device in report["devices"]] == [1, 2, 3]
    for device in report["devices"]:
        assert 0 <= device["offload_share"] <= 1
        assert device["bytes"] > 0


@pytest.mark.mosquitto
def test_learning_settings_give_the_same_weights_in_fleet_and_one_process(
    mosquitto_broker: RunningBroker, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {
        "aggregation_every": 2,
        "soft_labels": 0.5,
        "weighting": "uniform",
        "average": "trimmed",
        "clip_updates": 0.9,
        "largest_loss": 1.01,
        "largest_share": 0.4,
        "augmentation": "flip-crop",
        "optimizer": "adamw",
        "schedule": "constant",
        "warm_up": 0.2,
        "learning_rate": 0.003,
        "trunk_learning_rate": 0.001,
        "momentum": 0.8,
        "weight_decay": 0.01,
    }
    flags = [text for name, value in settings.items() for text in (f"--{name.replace('_', '-')}", str(value))]
    with Fleet(str(mosquitto_broker.address), "same-settings", tmp_path) as fleet:
        fleet.server("--strategy", "averaging", "--client-averaging", "layerwise", "--balanced-loss", *flags)
        fleet.three_devices()
        assert fleet.wait() == [0, 0, 0, 0]
        report = fleet.report()
    settings |= {"averaging": "layerwise", "balanced_loss": True}
    expected = in_one_process("averaging", "step", rounds=2, **settings)
    assert report["weights_sha256"] == expected


@pytest.mark.mosquitto
def test_weights_with_one_resident_trunk_equal_those_with_all_resident(
    mosquitto_broker: RunningBroker, tmp_path: Path
) -> None:
    with Fleet(str(mosquitto_broker.address), "in-waves", tmp_path) as fleet:
        fleet.server("--strategy", "averaging", "--trunk-momentum", "dropped", "--resident", "1")
        fleet.three_devices()
        assert fleet.wait() == [0, 0, 0, 0]
        report = fleet.report()
    assert report["weights_sha256"] == in_one_process("averaging", "step", rounds=2, trunk_momentum="dropped")


@pytest.mark.slow(10)
def test_memory_of_the_server_does_not_grow_with_rounds(
    mosquitto_broker: RunningBroker, tmp_path: Path
) -> None:
    """Its memory beside the models is the same after 10 rounds and after 60."""
    topics = Topics("memory")
    watcher = Link(mosquitto_broker.address, "memory-watcher")
    watcher.subscribe(topics.metrics)
    watcher.open(5)
    sizes: dict[int, int] = {}
    with Fleet(str(mosquitto_broker.address), topics.fleet, tmp_path) as fleet:
        fleet.server("--steps", "2", "--strategy", "averaging", devices=2, rounds=60)
        fleet.device("pi-1", 1, "--limit", "64", shard="1/2")
        fleet.device("pi-2", 3, "--limit", "64", shard="2/2")
        server = psutil.Process(fleet.processes["server"].pid)
        while len(sizes) < 50:
            event = watcher.receive(60)
            assert event is not None
            if isinstance(event, Message):
                number = Metrics.decode(event.payload).round
                if 10 <= number < 60:
                    sizes[number] = server.memory_info().rss
        assert fleet.wait() == [0, 0, 0]
    watcher.close()
    assert max(sizes.values()) - sizes[10] < 2 << 20, sizes
