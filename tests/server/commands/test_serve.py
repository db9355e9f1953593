# SPDX-License-Identifier: Apache-2.0
"""The loop of `splitee serve` on a fake port."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from fakes import FakeClock, FakePort

from splitee.inference.manifest import TrunkManifest, write_manifest
from splitee.inference.trunks import TrunkModels
from splitee.mqtt.events import Overflow
from splitee.protocol import routes
from splitee.protocol.topics import Topics
from splitee_server.commands.serve import TrunkServer
from splitee_server.release.rollout_store import RolloutStore

TOPICS = Topics("barn")


class CountingPort(FakePort):
    """Counts subscriptions by filter: on each, a broker sends its retained messages."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(clock)
        self.requested: Counter[str] = Counter()

    def subscribe(self, *filters: str) -> None:
        super().subscribe(*filters)
        self.requested.update(filters)


def test_lost_model_reports_are_requested_again_at_most_once_a_minute(tmp_path: Path) -> None:
    manifest = TrunkManifest(
        kind="trunk",
        run="run",
        round=1,
        network="resnet18",
        class_names=("cat", "dog"),
        opset=17,
        devices={},
        trunks={},
        sha256={},
        versions={},
    )
    write_manifest(tmp_path, manifest)
    clock = FakeClock()
    port = CountingPort(clock)
    store = RolloutStore(tmp_path / "releases")
    server = TrunkServer(port, TOPICS, TrunkModels(tmp_path), store, instance=1, clock=clock)
    start = clock()

    def requested_by(seconds: float) -> int:
        server.run(lambda: clock() >= start + seconds)
        return port.requested[routes.MODEL_REPORT.topic(TOPICS)]

    for _ in range(3):
        port.happen(Overflow())
    assert requested_by(1) == 2, "at the start, and once for what was lost at first"
    assert requested_by(59) == 2
    assert requested_by(61) == 3, "for what was lost since"
    assert requested_by(300) == 3, "nothing more was lost"
