# SPDX-License-Identifier: Apache-2.0
"""Settings that depend on the fleet's images: robust against false reports, and settled once."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace
from virtual_fleet import RUN, TOPICS, VirtualFleet

from splitee.networks.split import build_for
from splitee.protocol.run_spec import RunSpec
from splitee_server.rounds.settling import LEAST_STD, DeviceReport, settle

FLEET = replace(RUN, normalize="fleet")
HONEST = [
    DeviceReport(1, 10, (0.4, 0.5, 0.6), (0.2, 0.2, 0.2)),
    DeviceReport(1, 10, (0.42, 0.5, 0.6), (0.2, 0.3, 0.2)),
]


@pytest.mark.parametrize("lie", [0.0, 1.0])
def test_settled_normalization_stays_within_the_values_of_honest_devices(lie: float) -> None:
    settled = settle(FLEET, build_for(FLEET), [*HONEST, DeviceReport(1, 1, (lie,) * 3, (lie,) * 3)])
    assert 0.4 <= settled.mean[0] <= 0.42
    assert settled.mean[1:] == (0.5, 0.6)
    assert 0.2 <= settled.std[1] <= 0.3


def test_constant_or_missing_pixel_statistics_settle_to_valid_values() -> None:
    told = [
        DeviceReport(1, 10, (0.4,) * 3, (0.0,) * 3),
        DeviceReport(1, 10, (0.4,), (0.1,)),
        DeviceReport(1, 10),
    ]
    settled = settle(FLEET, build_for(FLEET), told)
    assert settled.mean == (0.4,) * 3
    assert settled.std == (LEAST_STD,) * 3
    assert settle(FLEET, build_for(FLEET), [DeviceReport(1, 10)]).mean == (0.5,)


def test_run_is_settled_durably_and_published_before_its_first_round(tmp_path: Path) -> None:
    fleet = VirtualFleet(tmp_path, "pi-1", "pi-2", normalize="fleet")
    for name, mean in (("pi-1", 0.25), ("pi-2", 0.75)):
        device = fleet.devices[name]
        device.profile = replace(device.profile, pixel_mean=(mean,) * 3, pixel_std=(0.125,) * 3)
    fleet.run()
    runs = [RunSpec.decode(sent.payload) for sent in fleet.port.sent if sent.topic == TOPICS.run]
    assert runs[0].awaits_fleet and not runs[-1].awaits_fleet
    assert (runs[-1].mean, runs[-1].std) == ((0.5,) * 3, (0.125,) * 3)
    topics = [sent.topic for sent in fleet.port.sent]
    first_round = next(
        at
        for at, sent in enumerate(fleet.port.sent)
        if sent.topic == TOPICS.round and b'"train"' in sent.payload
    )
    last_run = len(topics) - 1 - topics[::-1].index(TOPICS.run)
    assert last_run < first_round
    assert fleet.checkpoints.begun() == replace(runs[-1], class_names=())
