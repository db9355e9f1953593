# SPDX-License-Identifier: Apache-2.0
"""Traffic by purpose: it adds up, survives the server's process, and starts anew without its file."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any, get_args

import pytest
from fakes import Sent
from virtual_fleet import TOPICS, VirtualFleet, client_weights

from splitee.protocol import routes
from splitee.protocol.fields import Purpose
from splitee.protocol.fleet import DeviceStatus
from splitee.protocol.rounds import Features, Weights
from splitee.protocol.traffic import ByPurpose, Tally, Traffic
from splitee_server.members.members import Members
from splitee_server.members.traffic import DEVICES, FleetTraffic, StoredTraffic
from splitee_server.rounds.checkpoints import TRAFFIC

TWO = ("pi-1", "pi-2")
PURPOSES = get_args(Purpose)
SETTINGS: dict[str, Any] = {"client_averaging": "layerwise", "statistics_batches": 2, "soft_labels": 0.5}


def count_bytes_of_devices(fleet: VirtualFleet) -> Counter[tuple[str, str]]:
    """Bytes of the messages that devices send from here on, by device and purpose."""
    found: Counter[tuple[str, str]] = Counter()
    later = fleet.port.later

    def watched(seconds: float, topic: str, payload: bytes, **properties: Any) -> None:
        route, device = routes.find_route(TOPICS, topic) or (None, "")
        purpose = "protocol"
        if route is routes.FEATURES:
            phase = Features.decode(payload).phase
            purpose = {"train": "training", "evaluate": "evaluation"}.get(phase, phase)
        elif route is routes.WEIGHTS:
            phase = Weights.decode(payload).phase
            purpose = phase if phase == "statistics" else "client_networks"
        found[device, purpose] += len(payload)
        later(seconds, topic, payload, **properties)

    fleet.port.later = watched  # type: ignore[method-assign]
    return found


def bytes_of_server(fleet: VirtualFleet) -> Counter[str]:
    """Bytes that the server has sent to each device alone, and under "" to all; without those for viewers."""
    found: Counter[str] = Counter()
    for sent in fleet.port.sent:
        route, device = routes.find_route(TOPICS, sent.topic) or (None, "")
        assert route is not None
        if "device" in route.readers:
            found[device] += len(sent.payload)
    return found


def test_traffic_by_purpose_matches_the_messages_and_adds_up(tmp_path: Path) -> None:
    fleet = VirtualFleet(tmp_path / "server", *TWO, **SETTINGS)
    counted = count_bytes_of_devices(fleet)
    report = fleet.run()
    sent = bytes_of_server(fleet)
    for device in report["devices"]:
        up, down = device["traffic"]["up"], device["traffic"]["down"]
        for name in PURPOSES:
            assert up[name] == counted[device["id"], name], name
            assert (up[name] > 0) == (name not in ("soft_labels", "models", "offload")), name
        assert device["bytes"] == sum(up[name] for name in PURPOSES)
        assert sum(down[name] for name in PURPOSES) == sent[device["id"]] > 0
    for way in ("up", "down"):
        for name in (*PURPOSES, "headers"):
            assert report["traffic"][way][name] == sum(one["traffic"][way][name] for one in report["devices"])
    assert report["bytes_published"] == sum(device["bytes"] for device in report["devices"])
    to_all = report["traffic"]["to_all"]
    assert to_all["protocol"] == sum(to_all[name] for name in PURPOSES) == sent[""] > 0
    assert json.loads((tmp_path / "server" / "report.json").read_text())["traffic"] == report["traffic"]


def test_fetched_weights_count_as_client_network_traffic(tmp_path: Path) -> None:
    fleet = VirtualFleet(tmp_path / "server", *TWO, **SETTINGS)
    evaluated = []

    def request_weights(opened: Any) -> None:
        if opened.phase == "evaluate":
            evaluated.append(opened.round)
            names = tuple(client_weights(1))
            fleet.devices["pi-1"].publish(
                routes.SYNC, routes.SYNC.message(run=opened.run, instance=1, weights=names).encode()
            )

    fleet.on_phase = request_weights
    report = fleet.run()
    down = next(one["traffic"]["down"] for one in report["devices"] if one["id"] == "pi-1")
    delivered = fleet.port.payloads(routes.HELD_WEIGHTS.topic(TOPICS, "pi-1"))
    assert len(delivered) == len(evaluated)
    assert down["client_networks"] == sum(map(len, delivered)) > 0


class Killed(Exception):
    """Ends a server's process in a test."""


def test_traffic_counts_survive_a_server_kill(tmp_path: Path) -> None:
    """Killed when round 2 opens: the next process adds to the counts up to the evaluation of round 1."""
    fleet = VirtualFleet(tmp_path / "server", *TWO)
    fleet.on_phase = lambda opened: kill() if (opened.phase, opened.round) == ("train", 2) else None
    before = count_bytes_of_devices(fleet)

    def kill() -> None:
        raise Killed

    with pytest.raises(Killed):
        fleet.run()
    again = VirtualFleet(tmp_path / "server", *TWO, instance=200)
    after = count_bytes_of_devices(again)
    report = again.run()
    for device in report["devices"]:
        for purpose in PURPOSES:
            both = before[device["id"], purpose] + after[device["id"], purpose]
            assert device["traffic"]["up"][purpose] == both, purpose


@pytest.mark.parametrize("damage", ["missing", "of another run", "no JSON", "no text", "of another form"])
def test_traffic_is_counted_anew_without_a_valid_traffic_file(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    """As in a state of an earlier release: the run goes on, and ends with the same weights."""
    whole = VirtualFleet(tmp_path / "whole", *TWO).run()
    fleet = VirtualFleet(tmp_path / "server", *TWO)
    fleet.on_phase = lambda opened: stop() if (opened.phase, opened.round) == ("train", 2) else None

    def stop() -> None:
        raise Killed

    with pytest.raises(Killed):
        fleet.run()
    path = tmp_path / "server" / TRAFFIC
    stored = json.loads(path.read_text())
    path.unlink()
    if damage != "missing":
        contents = {
            "of another run": json.dumps(stored | {"run": "x"}).encode(),
            "no JSON": b"{",
            "no text": b'{"run":"\xff"}',
            "of another form": b"[]",
        }
        path.write_bytes(contents[damage])
    again = VirtualFleet(tmp_path / "server", *TWO, instance=200)
    counted = count_bytes_of_devices(again)
    report = again.run()
    assert report["weights_sha256"] == whole["weights_sha256"]
    for device in report["devices"]:
        assert device["traffic"]["up"]["training"] == counted[device["id"], "training"]
    is_damaged = damage in ("no JSON", "no text", "of another form")
    assert any("is damaged" in line for line in caplog.messages) == is_damaged


def test_members_saved_by_an_earlier_release_are_loaded(tmp_path: Path) -> None:
    """Their totals have bytes without a purpose."""
    first = VirtualFleet(tmp_path / "server", *TWO)
    first.run()
    stored = first.checkpoints.load()
    assert stored is not None
    for member in stored.members:
        member["totals"]["bytes"] = 12_345
    after = Members()
    after.load(stored.members, stored.class_names)
    assert [member.totals.batches for member in after] == [
        member["totals"]["batches"] for member in stored.members
    ]


def test_traffic_of_made_up_devices_takes_bounded_memory() -> None:
    traffic = FleetTraffic(TOPICS, "r")
    for number in range(DEVICES + 5):
        traffic.received(routes.STATUS.topic(TOPICS, f"pi-{number}"), 10, 1)
    assert traffic.of(f"pi-{DEVICES - 1}").up.protocol == 10
    assert traffic.of(f"pi-{DEVICES}") == Traffic()
    assert traffic.moved().up.payload == 10 * (DEVICES + 5)
    assert traffic.stored(["pi-1"]) == StoredTraffic("r", {"pi-1": traffic.of("pi-1")})


def test_traffic_of_foreign_or_wrong_way_topics_belongs_to_no_device() -> None:
    traffic = FleetTraffic(TOPICS, "r")
    for topic in ("homeassistant/status", TOPICS.round, routes.ACK.topic(TOPICS, "pi-1"), f"{TOPICS.base}/x"):
        traffic.received(topic, 10, 1)
    traffic.published(routes.STATUS.topic(TOPICS, "pi-1"), 0, 1)  # clears it
    assert traffic.of("pi-1") == Traffic()
    assert traffic.to_all() == ByPurpose()
    assert traffic.moved() == Traffic(up=ByPurpose(protocol=40, headers=4), down=ByPurpose(headers=1))


def test_tally_sums_traffic_by_direction_and_purpose() -> None:
    tally = Tally(Traffic(up=ByPurpose(training=1, headers=2)))
    tally.add("up", "training", 10, 20)
    tally.add("down", "models", 5)
    traffic = tally.traffic()
    assert traffic == Traffic(up=ByPurpose(training=11, headers=22), down=ByPurpose(models=5))
    assert (traffic + traffic).as_dict()["up"]["training"] == 22
    assert (traffic.up.payload, traffic.payload) == (11, 16)


def test_device_status_carries_traffic_and_is_read_across_releases() -> None:
    status = DeviceStatus(state="online", instance=1, traffic=Traffic(down=ByPurpose(soft_labels=7)))
    assert DeviceStatus.decode(status.encode()) == status
    assert DeviceStatus.decode(b'{"state":"online","instance":1,"bytes":9}').traffic is None
    later = b'{"state":"online","instance":1,"traffic":{"up":{"training":1,"unheard_of":2},"across":{}}}'
    assert DeviceStatus.decode(later).traffic == Traffic(up=ByPurpose(training=1))
    sent = Sent("t", status.encode(), retain=True, correlation=None)
    assert len(sent.payload) < 120
