# SPDX-License-Identifier: Apache-2.0
"""The devices of a round: the same for the same seed, round and commit, and each device gets its turn."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_runs import tiny_run

from splitee_server.rounds.sampling import pick, picks, sample_size

TEN = [f"pi-{number}" for number in range(10)]


def picked(rounds: int = 20, **settings: Any) -> list[list[str]]:
    return list(picks(tiny_run(rounds=rounds, **settings), dict.fromkeys(TEN)))


@pytest.mark.parametrize(
    ("of", "devices", "least", "size"),
    [
        ("all", 7, 1, 7), ("3", 7, 1, 3), ("9", 7, 1, 7), ("2", 7, 4, 4), ("2", 3, 4, 3), ("10%", 100, 1, 10),
        ("10%", 101, 1, 11), ("1%", 7, 1, 1), ("1%", 7, 2, 2), ("100%", 7, 1, 7), ("50%", 0, 1, 0),
    ],
)  # fmt: skip
def test_sample_size_is_as_requested_but_not_below_the_minimum(
    of: str, devices: int, least: int, size: int
) -> None:
    assert sample_size(of, devices, least) == size


def test_longest_waiting_devices_are_sampled_first() -> None:
    found = picked(sample="3")
    assert all(len(set(one)) == 3 for one in found)
    for begin in range(len(found) - 4):  # in four rounds of three each of the ten has had a turn
        assert {device for one in found[begin : begin + 4] for device in one} == set(TEN)


def test_uniform_sampling_picks_devices_about_equally_often() -> None:
    times = Counter(device for one in picked(rounds=600, sample="20%", sample_by="uniform") for device in one)
    assert sum(times.values()) == 1200
    assert all(80 < times[device] < 160 for device in TEN)  # 120 +- 4 standard deviations


@pytest.mark.parametrize("by", ["waiting", "uniform"])
def test_sample_is_determined_by_seed_and_round(by: Any) -> None:
    same, other = picked(sample="3", sample_by=by), picked(sample="3", sample_by=by, seed=2)
    assert same == picked(sample="3", sample_by=by)
    assert same != other
    assert len({tuple(one) for one in same}) > 1


@given(st.dictionaries(st.sampled_from(TEN), st.integers(0, 5), min_size=4), st.randoms())
def test_sample_is_independent_of_the_order_of_devices(last: dict[str, int], draw: Any) -> None:
    run, shuffled = tiny_run(sample="3"), list(last.items())
    draw.shuffle(shuffled)
    found = pick(run, 6, last)
    assert found == pick(run, 6, dict(shuffled))
    assert max(last[device] for device in found) <= min(last[d] for d in last.keys() - set(found))


def test_uniform_sample_is_unchanged_when_an_unsampled_device_leaves() -> None:
    run = tiny_run(sample="3", sample_by="uniform")
    first = pick(run, 1, dict.fromkeys(TEN, 0))
    gone = next(device for device in TEN if device not in first)
    assert pick(run, 1, {device: 0 for device in TEN if device != gone}) == first
