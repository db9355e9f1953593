# SPDX-License-Identifier: Apache-2.0
"""A fleet over websockets, and on a broker that is not Mosquitto: the same weights as in one process."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ejabberd import Ejabberd, ejabberd, find_ejabberd
from fleets import CUTS, Fleet, await_message, in_one_process

from splitee.mqtt.address import BrokerAddress
from splitee.mqtt.link import Link
from splitee.protocol.rounds import RoundOpen
from splitee.protocol.topics import Topics
from splitee_lab.local.brokers import MOSQUITTO_SETTINGS, RestartableBroker, free_port

ROUNDS, STEPS = 3, 10


@pytest.fixture
def another_broker(tmp_path: Path) -> Iterator[Ejabberd]:
    libraries = find_ejabberd()
    if libraries is None:
        if os.environ.get("CI") == "true":
            pytest.fail("no ejabberd, and CI=true: install it (scripts/ensure_ejabberd.sh)")
        pytest.skip("no ejabberd (apt install ejabberd; it starts a service of its own)")
    with ejabberd(libraries, tmp_path) as broker:
        yield broker


def url(address: BrokerAddress) -> str:
    """As a user writes it, with the password."""
    return str(address).replace("@", f":{address.password}@")


def flags() -> tuple[str, ...]:
    return "--client-averaging", "layerwise", "--steps", str(STEPS)


def check(fleet: Fleet, directory: Path) -> None:
    assert fleet.wait() == [0, 0, 0, 0]
    report = fleet.report()
    assert report["weights_sha256"] == in_one_process(
        "sequential", "step", ROUNDS, averaging="layerwise", steps=STEPS
    )
    assert report["batches_trained"] == ROUNDS * len(CUTS) * STEPS
    assert report["rejected"] == 0
    for device in CUTS:
        assert (directory / device / "models" / "current").exists(), fleet.log(device)


@pytest.mark.slow(10)
@pytest.mark.mosquitto
def test_fleet_over_websockets_gives_the_weights_of_one_process(
    make_broker: Callable[..., RestartableBroker], tmp_path: Path
) -> None:
    port = free_port()
    make_broker("mosquitto", f"{MOSQUITTO_SETTINGS}listener {port} 127.0.0.1\nprotocol websockets\n")
    with Fleet(f"ws://127.0.0.1:{port}", "websockets", tmp_path) as fleet:
        fleet.server(*flags(), rounds=ROUNDS, release=True)
        fleet.three_devices()
        check(fleet, tmp_path)


@pytest.mark.slow(14)
def test_fleet_on_ejabberd_survives_a_killed_server(another_broker: Ejabberd, tmp_path: Path) -> None:
    topics = Topics("another-broker")
    watcher = Link(another_broker.tcp, "watcher")
    watcher.subscribe(topics.round, topics.device("pi-2", "features"))
    watcher.open(10)

    def trains_the_second_round(payload: bytes) -> bool:
        return b'"phase":"train"' in payload and RoundOpen.decode(payload).round == 2

    with Fleet(url(another_broker.tcp), topics.fleet, tmp_path) as fleet:
        fleet.server(*flags(), rounds=ROUNDS, release=True)
        fleet.broker = url(another_broker.websockets)
        fleet.three_devices()
        await_message(watcher, topics.round, trains_the_second_round)
        await_message(watcher, topics.device("pi-2", "features"))
        fleet.processes["server"].send_signal(signal.SIGKILL)
        fleet.processes["server"].wait()
        fleet.broker = url(another_broker.tcp)
        fleet.server(*flags(), rounds=ROUNDS, release=True)
        check(fleet, tmp_path)
    watcher.close()
