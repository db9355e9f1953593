"""A broker that dies and a network that is cut under a fleet with the product's defaults: the same weights.

The defaults: client networks averaged layer by layer and, in one of the two, models released at the end.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from fleets import CUTS, Fleet, await_message, in_one_process
from proxy import Proxy

from splitee.mqtt.link import Link
from splitee.protocol.rounds import RoundOpen
from splitee.protocol.topics import Topics
from splitee_lab.local.brokers import OwnBroker, RunningBroker

ROUNDS = 4
STEPS = "20"  # batches a round: enough for something to happen in its middle


def until_batch(link: Link, topics: Topics, number: int) -> None:
    """Until pi-2 trains round `number`."""
    opened = b'"phase":"train"'
    await_message(
        link,
        topics.round,
        lambda payload: opened in payload and RoundOpen.decode(payload).round >= number,
    )
    await_message(link, topics.device("pi-2", "features"))


def watch(link: Link, topics: Topics) -> None:
    link.subscribe(topics.round, topics.device("pi-2", "features"))
    link.open(10)


def check(fleet: Fleet) -> None:
    """The run ended as one that nothing happened to."""
    assert fleet.wait() == [0, 0, 0, 0]
    report = fleet.report()
    expected = in_one_process("sequential", "step", ROUNDS, averaging="layerwise", steps=int(STEPS))
    assert report["weights_sha256"] == expected
    assert report["batches_trained"] == ROUNDS * len(CUTS) * int(STEPS)


@pytest.fixture
def flags() -> tuple[str, ...]:
    return "--client-averaging", "layerwise", "--steps", STEPS


@pytest.mark.slow(20)
@pytest.mark.mosquitto
def test_a_broker_that_is_killed_loses_nothing(
    make_broker: Callable[..., OwnBroker], tmp_path: Path, flags: tuple[str, ...]
) -> None:
    broker, topics = make_broker(), Topics("killed-broker")
    watcher = Link(broker.address, "watches-killed-broker")
    watch(watcher, topics)
    with Fleet(str(broker.address), topics.fleet, tmp_path) as fleet:
        fleet.server(*flags, rounds=ROUNDS, release=True)
        fleet.three_devices()
        for number in (2, 3):
            until_batch(watcher, topics, number)
            broker.kill()
            broker.start()
        check(fleet)
        for device in CUTS:
            assert (tmp_path / device / "models" / "current").exists(), fleet.log(device)
    watcher.close()


@pytest.mark.slow(7)
@pytest.mark.mosquitto
def test_a_network_that_is_cut_loses_nothing(
    mosquitto_broker: RunningBroker, tmp_path: Path, flags: tuple[str, ...]
) -> None:
    topics, proxy = Topics("cut-network"), Proxy(mosquitto_broker.address)
    watcher = Link(mosquitto_broker.address, "watches-cut-network")
    watch(watcher, topics)
    with Fleet(str(mosquitto_broker.address), topics.fleet, tmp_path) as fleet:
        fleet.server(*flags, rounds=ROUNDS)
        for name in ("pi-1", "pi-3"):
            fleet.device(name, CUTS[name], shard=f"{name[-1]}/3")
        fleet.device("pi-2", CUTS["pi-2"], "--broker", str(proxy.address), shard="2/3")
        for number in (1, 3):
            until_batch(watcher, topics, number)
            proxy.blocked.set()
            proxy.cut()
            while "connection lost" not in fleet.log("pi-2").rpartition("connected to broker")[2]:
                watcher.receive(0.1)
            proxy.blocked.clear()
        check(fleet)
    proxy.close()
    watcher.close()
