# SPDX-License-Identifier: Apache-2.0
"""A device behind a slow, far and lossy link: its fleet trains to the end, and its speed is reported."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from fleets import CUTS, Fleet, in_one_process
from slow_proxy import SlowProxy

from splitee.mqtt.events import Message
from splitee.mqtt.link import Link
from splitee.protocol.fleet import DeviceStatus
from splitee.protocol.topics import Topics
from splitee_lab.local.brokers import RunningBroker

RATE = 24_000  # bytes a second: a batch of the first cut takes more than one
STEPS = 3  # batches a round
SLOW = "pi-1"


@pytest.mark.slow(20)
@pytest.mark.mosquitto
def test_device_behind_a_slow_link_finishes_and_reports_its_speed(
    mosquitto_broker: RunningBroker, make_link: Callable[..., Link], tmp_path: Path
) -> None:
    topic = Topics("slow-link").device(SLOW, "status")
    watcher = make_link(mosquitto_broker.address, "watches a slow device", topic)
    proxy = SlowProxy(mosquitto_broker.address, RATE, delay=0.1, loss=0.05)
    with Fleet(str(mosquitto_broker.address), "slow-link", tmp_path) as fleet:
        fleet.server("--steps", str(STEPS), "--missing", "skip", "--deadline-floor", "5")
        for index, (name, cut) in enumerate(CUTS.items(), start=1):
            fleet.broker = str(proxy.address if name == SLOW else mosquitto_broker.address)
            fleet.device(name, cut, shard=f"{index}/3")
        assert fleet.wait() == [0, 0, 0, 0]
        report, log = fleet.report(), fleet.log(SLOW)
    proxy.close()
    assert report["weights_sha256"] == in_one_process("sequential", "step", 2, steps=STEPS)
    assert "connection lost" not in log
    said = []
    while (event := watcher.receive(0)) is not None:
        if isinstance(event, Message) and event.payload:
            said.append(DeviceStatus.decode(event.payload))
    online = [status for status in said if status.state == "online"]
    assert [status.state for status in said] == ["online"] * len(online) + ["offline"]  # its farewell
    assert any(status.upload is not None and status.upload < 3 * RATE for status in online)
