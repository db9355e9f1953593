# SPDX-License-Identifier: Apache-2.0
"""The inference service over a fake port recovers lost messages."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from fakes import FakeClock, FakePort

from splitee.mqtt.events import Overflow
from splitee.mqtt.link import Link
from splitee.mqtt.options import LinkOptions
from splitee.protocol import routes
from splitee.protocol.inference import ModelOffer, ReleaseWant
from splitee.protocol.topics import Topics
from splitee_device.inference.model_store import ModelStore
from splitee_device.inference.service import InferenceService

TOPICS = Topics("fleet")
OFFER, WANT = (route.topic(TOPICS, "pi-1") for route in (routes.MODEL_OFFER, routes.MODEL_WANT))


class RetainingPort(FakePort):
    """A port that delivers the retained messages to each subscription."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(clock)
        self.retained: dict[str, bytes] = {}

    def subscribe(self, *filters: str) -> None:
        super().subscribe(*filters)
        for topic in filters:
            if topic in self.retained:
                self.deliver(topic, self.retained[topic], retained=True)


def test_service_subscribes_again_after_an_overflow_and_gets_the_lost_offer(tmp_path: Path) -> None:
    clock = FakeClock()
    port = RetainingPort(clock)
    service = InferenceService(
        cast(Link, port),
        LinkOptions(port.address, TOPICS.fleet, 1.0, None),
        TOPICS,
        "pi-1",
        ModelStore(tmp_path),
        instance=1,
    )
    port.retained[OFFER] = ModelOffer(release="ab" * 32, size=100).encode()
    for _ in range(3):
        port.happen(Overflow())
    end = clock() + 3
    service.run(None, lambda: clock() > end)
    assert [ReleaseWant.decode(payload).release for payload in port.payloads(WANT)] == ["ab" * 32]
