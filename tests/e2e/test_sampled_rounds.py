# SPDX-License-Identifier: Apache-2.0
"""Rounds of some of the devices, or of a time, in real processes: killed and resumed, and in one process."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from fleets import CUTS, Fleet, await_message, simulation_of

from splitee.mqtt.events import Message
from splitee.mqtt.link import Link
from splitee.protocol.rounds import Participation, RoundOpen
from splitee.protocol.topics import Topics
from splitee_lab.local.brokers import RunningBroker

ROUNDS, STEPS = 4, 12
BROAD: dict[str, Any] = {"averaging": "layerwise", "sample": "2"}
SCANT: dict[str, Any] = {"averaging": "none", "sample": "1", "sample_by": "uniform"}


class Opened(NamedTuple):
    """The training of a round: the steps of its participants, and the server process that opened it."""

    steps: dict[str, int]
    attempt: int


def opened(link: Link, topics: Topics, number: int, attempt: int = 0) -> Opened:
    """The training of round `number`, by another server process than `attempt`."""
    steps: dict[int, dict[str, int]] = defaultdict(dict)
    while True:
        event = link.receive(60)
        assert event is not None, f"round {number} was not opened"
        if not isinstance(event, Message):
            continue
        if event.topic == topics.round:
            found = RoundOpen.decode(event.payload)
            if (found.phase, found.round) == ("train", number) and found.attempt != attempt:
                assert found.participants == len(steps[found.attempt])
                return Opened(steps[found.attempt], found.attempt)
        elif event.topic.endswith("/inbox/participation"):
            told, device = Participation.decode(event.payload), event.topic.split("/")[4]
            if (told.phase, told.round) == ("train", number) and told.part is not None:
                steps[told.attempt][device] = told.part.steps


@pytest.mark.slow(7)
@pytest.mark.mosquitto
@pytest.mark.parametrize(
    ("strategy", "settings", "release"),
    [("sequential", BROAD, False), ("averaging", SCANT, True), ("data-parallel", BROAD, False)],
)
def test_killed_server_picks_the_same_devices_as_one_process(
    mosquitto_broker: RunningBroker, tmp_path: Path, strategy: str, settings: dict[str, Any], release: bool
) -> None:
    """With a release the server has every device's network, and those that were not picked keep their own."""
    topics = Topics(f"sampled-{strategy}")
    watcher = Link(mosquitto_broker.address, f"watches-{topics.fleet}")
    watcher.subscribe(topics.round, topics.all_devices("inbox/participation"), topics.all_devices("features"))
    watcher.open(10)
    wanted = settings | {"client_averaging": settings["averaging"], "strategy": strategy, "steps": STEPS}
    del wanted["averaging"]
    flags = [text for name, value in wanted.items() for text in (f"--{name.replace('_', '-')}", str(value))]
    here = simulation_of(strategy, "step", ROUNDS, **settings, steps=STEPS)
    picked = [set(done.devices) for done in here.rounds()]
    with Fleet(str(mosquitto_broker.address), topics.fleet, tmp_path) as fleet:
        fleet.server(*flags, rounds=ROUNDS, release=release)
        fleet.three_devices()
        for number in (2, 3):
            before = opened(watcher, topics, number)
            assert before.steps.keys() == picked[number - 1]
            await_message(watcher, topics.device(min(picked[number - 1]), "features"))
            fleet.processes["server"].kill()
            fleet.processes["server"].wait()
            fleet.server(*flags, rounds=ROUNDS, release=release)
            again = opened(watcher, topics, number, before.attempt)
            assert again.steps == before.steps
        assert fleet.wait() == [0, 0, 0, 0]
        report = fleet.report()
    watcher.close()
    assert report["weights_sha256"] == here.digest()
    assert report["batches_trained"] == sum(map(len, picked)) * STEPS
    assert report["rejected"] == 0
    assert {device["evaluated_round"] for device in report["devices"]} == {ROUNDS}
    for device in report["devices"]:
        assert (device["trunk_accuracy"] is not None) == (device["batches"] > 0)


@pytest.mark.slow(3)
def test_timed_rounds_train_a_fixed_number_first_then_one_pass(
    mosquitto_broker: RunningBroker, tmp_path: Path
) -> None:
    """An hour is more than a pass over these few images takes; the first round has no measurement."""
    topics = Topics("timed")
    watcher = Link(mosquitto_broker.address, "watches-timed")
    watcher.subscribe(topics.round, topics.all_devices("inbox/participation"))
    watcher.open(10)
    with Fleet(str(mosquitto_broker.address), topics.fleet, tmp_path) as fleet:
        fleet.server("--client-averaging", "layerwise", "--steps", "time:3600", "--batch-size", "4", rounds=2)
        fleet.three_devices()
        steps = [list(opened(watcher, topics, n).steps.values()) for n in (1, 2)]
        assert fleet.wait() == [0, 0, 0, 0]
        report = fleet.report()
    watcher.close()
    images = [device["train_samples"] for device in report["devices"]]
    assert steps == [[8] * len(CUTS), [count // 4 for count in images]]
    assert report["batches_trained"] == sum(map(sum, steps))
