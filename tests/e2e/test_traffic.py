# SPDX-License-Identifier: Apache-2.0
"""A fleet's counts of its bytes match those of the broker and of a simulation of the run."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from fakes import RecordingMeter
from fleets import Fleet, simulation_of

from splitee.mqtt.events import Message
from splitee.mqtt.link import Link
from splitee.protocol import routes
from splitee.protocol.fleet import DeviceStatus
from splitee.protocol.topics import Topics
from splitee.protocol.traffic import Traffic
from splitee_lab.local.brokers import MOSQUITTO_SETTINGS, RestartableBroker

CUTS = {"pi-1": 1, "pi-2": 3}
ROUNDS = 3
PAYLOADS = "$SYS/broker/publish/bytes"  # of publications
PACKETS = "$SYS/broker/bytes"  # all that comes and goes but TLS and TCP
SETTLED = 20.0  # seconds in which the broker, which publishes counts every second, has published the last
FLAGS = ("--strategy", "sequential", "--client-averaging", "layerwise", "--soft-labels", "0.5")


@pytest.mark.slow(6)
@pytest.mark.mosquitto
def test_traffic_counts_match_those_of_the_broker_and_a_simulation(
    make_link: Callable[..., Link], tmp_path: Path
) -> None:
    topics, watching = Topics("traffic"), RecordingMeter()
    broker = RestartableBroker("mosquitto", tmp_path, f"{MOSQUITTO_SETTINGS}sys_interval 1\n")
    broker.start()
    try:
        watcher = Link(broker.address, "traffic-watcher")
        watcher.meter = watching
        shown = [
            one
            for one in routes.ROUTES
            if one.sender == "server" and not {"device", "server"} & {*one.readers}
        ]
        watcher.subscribe(f"{PAYLOADS}/+", f"{PACKETS}/received", topics.all_devices("status"))
        watcher.subscribe(*(route.topic(topics) for route in shown))
        watcher.open(10)
        last: dict[str, Traffic] = {}
        counted: dict[str, int] = {}
        for_viewers = 0  # bytes that neither a device nor the server counts as the training's

        def receive(timeout: float) -> bool:
            nonlocal for_viewers
            event = watcher.receive(timeout)
            if not isinstance(event, Message):
                return event is not None
            found = routes.find_route(topics, event.topic)
            if found is not None and found[0] in shown:
                for_viewers += len(event.payload)
            elif event.topic.startswith("$SYS"):
                counted[event.topic] = int(event.payload)
            elif (told := DeviceStatus.decode(event.payload)).traffic is not None:
                last[event.topic.split("/")[-2]] = told.traffic
            return True

        with Fleet(str(broker.address), topics.fleet, tmp_path) as fleet:
            fleet.server(*FLAGS, devices=2, rounds=ROUNDS, release=True)
            for index, (name, cut) in enumerate(CUTS.items(), start=1):
                fleet.device(name, cut, shard=f"{index}/2")
            assert fleet.wait() == [0, 0, 0]
            report = fleet.report()
        while receive(0):
            pass
        said = report["traffic"]
        payload = {way: sum(said[way].values()) - said[way]["headers"] for way in ("up", "down", "to_all")}
        up, down = (sum(getattr(one, way).payload for one in last.values()) for way in ("up", "down"))
        published, received = up + payload["down"] + payload["to_all"], down + payload["up"]
        headers = sum(one.up.headers for one in last.values())
        headers += said["down"]["headers"] + said["to_all"]["headers"]

        def is_close() -> bool:
            seen = sum(size for _, size, _ in watching.incoming)
            expected = {
                f"{PAYLOADS}/received": published + for_viewers,
                f"{PAYLOADS}/sent": received + seen,
                # without acknowledgements and pings
                f"{PACKETS}/received": published + for_viewers + headers,
            }
            return all(abs(counted.get(of, 0) - said) < 0.02 * said for of, said in expected.items())

        until = time.monotonic() + SETTLED
        while not is_close():
            assert time.monotonic() < until, (counted, published, received, headers)
            receive(1.0)
        watcher.close()
    finally:
        broker.stop()

    for device in report["devices"]:  # both ends count the same but for messages of the protocol
        mine = last[device["id"]].as_dict()
        for purpose in ("training", "evaluation", "statistics", "client_networks"):
            assert mine["up"][purpose] == device["traffic"]["up"][purpose] > 0
        for purpose in ("client_networks", "soft_labels", "models"):
            assert mine["down"][purpose] == device["traffic"]["down"][purpose] > 0
        assert mine["down"]["protocol"] > device["traffic"]["down"]["protocol"]  # with messages to all

    simulation = simulation_of(
        "sequential", "step", ROUNDS, run=report["run"], averaging="layerwise", cuts=CUTS, soft_labels=0.5
    )
    found = sum((done.traffic for done in simulation.rounds()), Traffic())
    assert simulation.digest() == report["weights_sha256"]
    assert found.up.training == said["up"]["training"]
    assert found.up.evaluation == said["up"]["evaluation"]
    assert found.up.statistics == said["up"]["statistics"]
    for way in ("up", "down"):
        assert getattr(found, way).client_networks == said[way]["client_networks"], way
    assert found.down.soft_labels == said["down"]["soft_labels"]
