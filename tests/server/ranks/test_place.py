# SPDX-License-Identifier: Apache-2.0
"""The rank of a process, and settings that several ranks refuse before they meet."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from splitee.errors import ConfigError
from splitee.mqtt.address import BrokerAddress
from splitee.protocol.run_spec import RunSpec
from splitee_server.learning.lanes import in_order, lane_of
from splitee_server.ranks.assignment import LaneAssignment, RankAssignment
from splitee_server.ranks.place import Place, brokers_of_ranks, place_in

TORCHRUN = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
SPEC = RunSpec(protocol=1, run="r", network="n", num_classes=2, rounds=1, strategy="averaging")
OWN = BrokerAddress.parse("mqtt://server:secret@own.test")


def test_place_is_read_from_the_variables_of_torchrun() -> None:
    assert Place.of(TORCHRUN) == Place(1, 2)
    assert Place.of({**TORCHRUN, "LOCAL_WORLD_SIZE": "1"}) == Place(1, 2)
    assert Place.of({**TORCHRUN, "LOCAL_WORLD_SIZE": "2"}) == Place(1, 2, on_one_machine=True)
    assert Place.of({}) is None
    assert Place.of({**TORCHRUN, "RANK": "0", "WORLD_SIZE": "1"}) is None


@pytest.mark.parametrize(
    "changed",
    [
        {"RANK": "two"},
        {"RANK": "2"},
        {"MASTER_ADDR": ""},
        {"WORLD_SIZE": "-1"},
        {"MASTER_PORT": ""},
        {"MASTER_PORT": "mqtt"},
        {"MASTER_PORT": "65536"},
    ],
)
def test_invalid_variables_of_torchrun_are_refused(changed: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"WORLD_SIZE"):
        Place.of(TORCHRUN | changed)


@pytest.mark.parametrize("missing", ["RANK", "MASTER_ADDR", "MASTER_PORT"])
def test_missing_variable_of_torchrun_is_refused(missing: str) -> None:
    with pytest.raises(ConfigError, match=f"torchrun sets with it .*{missing}"):
        Place.of({name: value for name, value in TORCHRUN.items() if name != missing})


@pytest.mark.parametrize(
    ("spec", "devices", "said"),
    [
        (replace(SPEC, strategy="sequential"), 3, "--strategy sequential .* take --strategy averaging or"),
        (replace(SPEC, aggregation_every=4), 3, "--aggregation-every 4 .* leave it out"),
        (SPEC, 1, "--devices 1: 2 ranks .* start at most 1"),
    ],
)
def test_run_that_ranks_cannot_share_is_refused(
    spec: RunSpec, devices: int, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert place_in(spec, devices, 0) is None  # a single process can serve the run
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=said):
        place_in(spec, devices, 0)
    assert place_in(SPEC, 3, 0) == Place(1, 2)
    with pytest.raises(ConfigError, match="--resident 4 is for one process"):
        place_in(SPEC, 3, 4)


def test_brokers_flag_names_one_broker_per_rank() -> None:
    place = Place(0, 2)
    assert brokers_of_ranks(None, OWN, place, SPEC) == [OWN, OWN]
    assert brokers_of_ranks(None, OWN, None, SPEC) == [OWN]
    named = brokers_of_ranks("mqtt://a, mqtts://other@b:1", OWN, place, SPEC)
    assert named == [
        BrokerAddress.parse("mqtt://server:secret@a"),
        BrokerAddress.parse("mqtts://other@b:1"),
    ]
    with pytest.raises(ConfigError, match="--brokers names 1 brokers for 2 ranks"):
        brokers_of_ranks("mqtt://a", OWN, place, SPEC)
    joint = replace(SPEC, strategy="data-parallel")
    assert len(brokers_of_ranks("mqtt://a,mqtt://a", OWN, place, joint)) == 2
    with pytest.raises(ConfigError, match=r"--brokers names several .* give all ranks one"):
        brokers_of_ranks("mqtt://a,mqtt://b", OWN, place, joint)


def test_devices_are_dealt_evenly_by_id_and_keep_their_rank() -> None:
    dealing = RankAssignment(2)
    assert dealing.assign_ranks("cab") == {"a": 0, "b": 1, "c": 0}
    assert dealing.assign_ranks("bdz") == {"b": 1, "d": 0, "z": 0}
    assert dealing.assign_ranks("abc") == {"a": 0, "b": 1, "c": 0}


def test_lanes_are_dealt_in_rank_order_and_are_not_split() -> None:
    devices = [f"pi-{number}" for number in range(200)]
    for ranks in (1, 2, 4):
        dealt = LaneAssignment(ranks).assign_ranks(devices)
        in_turn = [dealt[device] for device in in_order(devices)]
        assert in_turn == sorted(in_turn)
        assert all(in_turn.count(rank) >= 0.75 * 200 / ranks for rank in range(ranks))
        assert len({(lane_of(device), dealt[device]) for device in devices}) == len(
            set(map(lane_of, devices))
        )
    dealing = LaneAssignment(2)
    assert dealing.assign_ranks(["pi-1", "pi-2", "pi-3", "pi-4"]) == {
        "pi-1": 0,
        "pi-2": 1,
        "pi-3": 1,
        "pi-4": 0,
    }
    assert [dealing.lanes(rank) for rank in range(2)] == [range(32), range(32, 64)]  # each has one sum
    assert dealing.assign_ranks([]) == {}


def test_device_is_dealt_to_a_rank_of_its_broker() -> None:
    at = {"a": [0], "b": [1, 2], "c": [1, 2]}
    dealing = RankAssignment(3, at.get)
    assert dealing.assign_ranks("abcd") == {"a": 0, "b": 1, "c": 2, "d": 0}
    at["a"] = [2]
    assert dealing.assign_ranks("a") == {"a": 2}
