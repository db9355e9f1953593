# SPDX-License-Identifier: Apache-2.0
"""Rounds of some of the devices, or of a time, in real processes: killed and resumed, and in one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fleets import CUTS, Fleet, await_message, in_one_process, simulation_of

from splitee.mqtt.link import Link
from splitee.protocol.rounds import RoundOpen
from splitee.protocol.topics import Topics
from splitee_lab.local.brokers import RunningBroker

ROUNDS, STEPS = 4, 12
BROAD: dict[str, Any] = {"averaging": "layerwise", "sample": "2"}
SCANT: dict[str, Any] = {"averaging": "none", "sample": "1", "sample_by": "uniform"}


def opened(link: Link, topics: Topics, number: int, attempt: int = 0) -> RoundOpen:
    """The training of a round, by another server process than `attempt`."""

    def is_it(payload: bytes) -> bool:
        found = RoundOpen.decode(payload)
        return (found.phase, found.round) == ("train", number) and found.attempt != attempt

    return RoundOpen.decode(await_message(link, topics.round, is_it))


@pytest.mark.slow(12)
@pytest.mark.mosquitto
@pytest.mark.parametrize(
    ("strategy", "settings", "release"), [("sequential", BROAD, False), ("averaging", SCANT, True)]
)
def test_a_server_that_is_killed_picks_the_same_devices_as_one_process_does(
    mosquitto_broker: RunningBroker, tmp_path: Path, strategy: str, settings: dict[str, Any], release: bool
) -> None:
    """With a release the server has every device's network, and those that were not picked keep their own."""
    topics = Topics(f"sampled-{strategy}")
    watcher = Link(mosquitto_broker.address, f"watches-{topics.fleet}")
    watcher.subscribe(topics.round, topics.all_devices("features"))
    watcher.open(10)
    wanted = settings | {"client_averaging": settings["averaging"], "strategy": strategy, "steps": STEPS}
    del wanted["averaging"]
    flags = [text for name, value in wanted.items() for text in (f"--{name.replace('_', '-')}", str(value))]
    picked = [
        set(done.devices)
        for done in simulation_of(strategy, "step", ROUNDS, **settings, steps=STEPS).rounds()
    ]
    with Fleet(str(mosquitto_broker.address), topics.fleet, tmp_path) as fleet:
        fleet.server(*flags, rounds=ROUNDS, release=release)
        fleet.three_devices()
        for number in (2, 3):
            before = opened(watcher, topics, number)
            assert before.participants.keys() == picked[number - 1]
            await_message(watcher, topics.device(min(picked[number - 1]), "features"))
            fleet.processes["server"].kill()
            fleet.processes["server"].wait()
            fleet.server(*flags, rounds=ROUNDS, release=release)
            again = opened(watcher, topics, number, before.attempt)
            assert again.participants == before.participants
        assert fleet.wait() == [0, 0, 0, 0]
        report = fleet.report()
    watcher.close()
    assert report["weights_sha256"] == in_one_process(strategy, "step", ROUNDS, **settings, steps=STEPS)
    assert report["batches_trained"] == sum(map(len, picked)) * STEPS
    assert report["rejected"] == 0
    assert {device["evaluated_round"] for device in report["devices"]} == {ROUNDS}
    for device in report["devices"]:
        assert (device["trunk_accuracy"] is not None) == (device["batches"] > 0)


@pytest.mark.slow(8)
def test_devices_train_for_a_time(mosquitto_broker: RunningBroker, tmp_path: Path) -> None:
    """A second is more than a pass over these few images takes; the first round goes by nothing known."""
    topics = Topics("timed")
    watcher = Link(mosquitto_broker.address, "watches-timed")
    watcher.subscribe(topics.round)
    watcher.open(10)
    with Fleet(str(mosquitto_broker.address), topics.fleet, tmp_path) as fleet:
        fleet.server("--client-averaging", "layerwise", "--steps", "time:3600", "--batch-size", "4", rounds=2)
        fleet.three_devices()
        steps = [[part.steps for part in opened(watcher, topics, n).participants.values()] for n in (1, 2)]
        assert fleet.wait() == [0, 0, 0, 0]
        report = fleet.report()
    watcher.close()
    images = [device["train_samples"] for device in report["devices"]]
    assert steps == [[8] * len(CUTS), [count // 4 for count in images]]
    assert report["batches_trained"] == sum(map(sum, steps))
