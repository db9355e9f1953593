# SPDX-License-Identifier: Apache-2.0
"""A demo leaves nothing at a broker that was there before it."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from waiting import until
from warm import WarmProcess

from splitee.errors import ExitCode
from splitee.mqtt.events import Message
from splitee.mqtt.link import Link
from splitee_lab.local.brokers import RunningBroker
from splitee_lab.local.forked import without_settings

SUPPORT = Path(__file__).parents[2] / "support"
SIZE = ("--devices", "1", "--rounds", "1", "--samples", "40", "--no-baselines")


@pytest.fixture
def demo(tmp_path: Path, mosquitto_broker: RunningBroker) -> Iterator[WarmProcess]:
    process = WarmProcess(
        ["demo", *SIZE, "--network", "tiny_networks:tiny", "--out", str(tmp_path / "out")],
        tmp_path / "shown",
        {**without_settings(), "PYTHONPATH": str(SUPPORT), "SPLITEE_BROKER": str(mosquitto_broker.address)},
    )
    yield process
    process.kill()


def topics_of_demos(broker: RunningBroker) -> set[str]:
    """The topics on which the broker retains a message of a demo's fleet."""
    found = set()
    with closing(Link(broker.address, "what-is-left")) as link:
        link.subscribe("splitee/v1/+/#")
        link.open(10)
        while (event := link.receive(1.0)) is not None:
            if isinstance(event, Message) and event.payload:
                found.add(event.topic)
    return {topic for topic in found if topic.split("/")[2].startswith("demo-")}


@pytest.mark.slow(15)
@pytest.mark.mosquitto
def test_finished_demo_leaves_no_retained_message(demo: WarmProcess, mosquitto_broker: RunningBroker) -> None:
    assert demo.wait(240) == ExitCode.OK
    assert topics_of_demos(mosquitto_broker) == set()


@pytest.mark.slow(10)
@pytest.mark.mosquitto
def test_interrupted_demo_leaves_no_retained_message(
    demo: WarmProcess, mosquitto_broker: RunningBroker
) -> None:
    until(
        lambda: any(topic.endswith("/run") for topic in topics_of_demos(mosquitto_broker)),
        lambda: "its server publishes no run",
    )
    demo.send_signal(signal.SIGTERM)
    assert demo.wait(60) == 143
    assert topics_of_demos(mosquitto_broker) == set()
