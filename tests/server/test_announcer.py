# SPDX-License-Identifier: Apache-2.0
"""The server's messages about many classes with long names, at a broker that takes only small packets."""

from __future__ import annotations

import pytest
from fakes import FakeClock, FakePort
from msgspec.structs import replace
from retained_fleet import METRICS, RUN, TOPICS

from splitee.errors import ConfigError
from splitee.protocol import routes
from splitee.protocol.accuracies import ClassRecall
from splitee.protocol.fleet import FleetMetrics, Metrics
from splitee_server.announcer import Announcer

NAMES = tuple(f"{number:0150}" for number in range(256))


def announcer_at(port: FakePort) -> Announcer:
    return Announcer(port, TOPICS, 1, "r1", clock=port.clock)


@pytest.mark.parametrize(("max_packet", "recalls"), [(1 << 20, 256), (40_000, 0)])
def test_recalls_of_classes_are_left_out_of_metrics_that_are_too_large_for_the_broker(
    max_packet: int, recalls: int
) -> None:
    port = FakePort(FakeClock(), max_packet=max_packet)
    fleet = FleetMetrics(
        images=2560, exit_accuracy=0.5, class_recalls=tuple(ClassRecall(name, 10, 0.5) for name in NAMES)
    )
    announcer_at(port).metrics(replace(METRICS, fleet=fleet), (), {})
    sent = Metrics.decode(port.payloads(routes.METRICS.topic(TOPICS))[-1])
    assert (sent.fleet.exit_accuracy, len(sent.fleet.class_recalls)) == (0.5, recalls)


def test_run_that_is_too_large_for_the_broker_is_refused_in_one_line() -> None:
    port = FakePort(FakeClock(), max_packet=30_000)
    with pytest.raises(ConfigError, match=r"256 classes .* 39\.\d KB, .* at most 30\.0 KB"):
        announcer_at(port).run(replace(RUN, num_classes=256, class_names=NAMES))
