# SPDX-License-Identifier: Apache-2.0
"""A broker that dies and a network that is cut under a fleet with the product's defaults: the same weights.

The defaults: client networks averaged layer by layer and, in one of the two, models released at the end.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from fleets import CUTS, Fleet, await_message, in_one_process
from proxy import Proxy

from splitee.mqtt.link import Link
from splitee.protocol.rounds import RoundOpen
from splitee.protocol.topics import Topics
from splitee_lab.local.brokers import MOSQUITTO_SETTINGS, RestartableBroker, RunningBroker

ROUNDS = 4
STEPS = "20"  # batches a round: enough for something to happen in its middle


def until_batch(link: Link, topics: Topics, number: int) -> None:
    """Wait until pi-2 trains round `number`."""
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
    """The run ended like an undisturbed one."""
    assert fleet.wait() == [0, 0, 0, 0]
    report = fleet.report()
    expected = in_one_process("sequential", "step", ROUNDS, averaging="layerwise", steps=int(STEPS))
    assert report["weights_sha256"] == expected
    assert report["batches_trained"] == ROUNDS * len(CUTS) * int(STEPS)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """For a Mosquitto that has given up root's rights, to which pytest's folders are closed."""
    with TemporaryDirectory(prefix="splitee-broker-") as name:
        Path(name).chmod(0o777)
        yield Path(name)


@pytest.fixture
def flags() -> tuple[str, ...]:
    return "--client-averaging", "layerwise", "--steps", STEPS


@pytest.mark.slow(13)
@pytest.mark.mosquitto
def test_killed_broker_leaves_the_weights_unchanged(
    make_broker: Callable[..., RestartableBroker], tmp_path: Path, flags: tuple[str, ...]
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
def test_broker_with_an_old_database_leaves_the_weights_unchanged(
    make_broker: Callable[..., RestartableBroker], open_folder: Path, tmp_path: Path, flags: tuple[str, ...]
) -> None:
    """As after a power cut, half an hour after it saved: its retained messages are of a round long over."""
    state = open_folder
    saving = f"persistence true\npersistence_location {state}/\nautosave_interval 1800\n"
    broker = make_broker(settings=MOSQUITTO_SETTINGS.replace("persistence false\n", saving))
    topics = Topics("old-database")
    watcher = Link(broker.address, "watches-old-database")
    watch(watcher, topics)
    with Fleet(str(broker.address), topics.fleet, tmp_path) as fleet:
        fleet.server(*flags, rounds=ROUNDS)
        fleet.three_devices()
        until_batch(watcher, topics, 1)
        assert broker.broker is not None and broker.broker.process is not None
        broker.broker.process.send_signal(signal.SIGUSR1)  # which makes Mosquitto save
        until_batch(watcher, topics, 3)
        assert (state / "mosquitto.db").exists()
        broker.kill()
        broker.start()
        check(fleet)
    watcher.close()


@pytest.mark.slow(8)
@pytest.mark.mosquitto
def test_model_offer_lost_by_the_broker_is_made_again(
    make_broker: Callable[..., RestartableBroker], tmp_path: Path, flags: tuple[str, ...]
) -> None:
    """The device was frozen when its model was offered, and the broker lost the offer."""
    broker, topics = make_broker(), Topics("lost-offer")
    watcher = Link(broker.address, "watches-lost-offer")
    watcher.subscribe(topics.round, topics.server_status, topics.device("pi-2", "inbox/model"))
    watcher.open(10)
    with Fleet(str(broker.address), topics.fleet, tmp_path) as fleet:
        fleet.server(*flags, rounds=1, release=True)
        fleet.three_devices()
        await_message(watcher, topics.round, lambda payload: b'"phase":"release"' in payload)
        while "trunk-cut-1.onnx" not in fleet.log("server"):  # else pi-2 goes offline while frozen
            watcher.receive(0.1)
        with fleet.frozen("pi-2"):
            await_message(watcher, topics.device("pi-2", "inbox/model"))
            await_message(watcher, topics.server_status)  # so the broker has acknowledged what came before
            await_message(watcher, topics.server_status)
            broker.kill()
            broker.start()
            await_message(watcher, topics.device("pi-2", "inbox/model"))
        assert fleet.wait() == [0, 0, 0, 0]
        assert (tmp_path / "pi-2" / "models" / "current").exists(), fleet.log("pi-2")
    watcher.close()


@pytest.mark.slow(7)
@pytest.mark.mosquitto
def test_network_cuts_leave_the_weights_unchanged(
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
