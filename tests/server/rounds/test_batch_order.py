# SPDX-License-Identifier: Apache-2.0
"""The order of batches: each is taken exactly once, in any order of arrival."""

from __future__ import annotations

import random
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitee_server.rounds.batch_order import BatchOrder

STEPS = {"a": 3, "b": 1, "c": 2}
EXPECTED = {
    "step": [("a", 0), ("b", 0), ("c", 0), ("a", 1), ("c", 1), ("a", 2)],
    "joint": [("a", 0), ("c", 0), ("b", 0), ("a", 1), ("c", 1), ("a", 2)],
    "device": [("a", 0), ("a", 1), ("a", 2), ("b", 0), ("c", 0), ("c", 1)],
}


def drain(schedule: BatchOrder[str]) -> list[tuple[str, int]]:
    taken = []
    while (item := schedule.take()) is not None:
        device, step, batch = item
        assert batch == f"{device}{step}"
        taken.append((device, step))
    return taken


@pytest.mark.parametrize("order", ["step", "joint", "device"])
def test_batches_are_taken_in_the_defined_order_for_any_arrivals(
    order: Literal["step", "joint", "device"],
) -> None:
    for seed in range(20):
        arrivals = [(device, step) for device, count in STEPS.items() for step in range(count)]
        random.Random(seed).shuffle(arrivals)
        schedule: BatchOrder[str] = BatchOrder(order, STEPS, window=3)
        taken = []
        for device, step in arrivals:
            assert schedule.offer(device, step, f"{device}{step}") == "taken"
            taken += drain(schedule)
        assert taken == EXPECTED[order]
        assert schedule.missing() == []


@given(st.lists(st.sampled_from([(d, s) for d, n in STEPS.items() for s in range(n + 2)]), max_size=60))
def test_order_any_takes_each_batch_once_and_in_step_order_per_device(
    arrivals: list[tuple[str, int]],
) -> None:
    schedule: BatchOrder[str] = BatchOrder("any", STEPS, window=2)
    taken: list[tuple[str, int]] = []
    for device, step in arrivals:
        verdict = schedule.offer(device, step, f"{device}{step}")
        if step >= STEPS[device]:
            assert verdict == "ahead"
        taken += drain(schedule)
    assert len(set(taken)) == len(taken)
    for device in STEPS:
        mine = [step for name, step in taken if name == device]
        assert mine == list(range(len(mine)))
        assert schedule.next_step(device) == len(mine)


def test_order_share_interleaves_devices_in_proportion_to_their_batches() -> None:
    taken = []
    schedule: BatchOrder[str] = BatchOrder("share", {"a": 4, "b": 2, "c": 1}, window=4)
    for device, count in (("b", 2), ("c", 1), ("a", 4)):
        for step in range(count):
            schedule.offer(device, step, f"{device}{step}")
            taken += drain(schedule)
    assert taken == [("a", 0), ("b", 0), ("c", 0), ("a", 1), ("a", 2), ("b", 1), ("a", 3)]


def test_duplicate_is_recognized_before_and_after_its_batch_is_taken() -> None:
    schedule: BatchOrder[str] = BatchOrder("step", {"a": 2, "b": 2}, window=2)
    assert schedule.offer("a", 0, "a0") == "taken"
    assert schedule.offer("a", 0, "a0") == "duplicate"
    assert schedule.take() == ("a", 0, "a0")
    assert schedule.offer("a", 0, "a0") == "duplicate"


def test_batch_beyond_the_window_is_refused() -> None:
    schedule: BatchOrder[str] = BatchOrder("any", {"a": 10}, window=3)
    assert schedule.offer("a", 3, "a3") == "ahead"
    assert schedule.offer("a", 2, "a2") == "taken"


@pytest.mark.parametrize("order", ["step", "device", "any"])
def test_batches_of_remaining_devices_are_taken_after_a_drop(order: Literal["step", "device", "any"]) -> None:
    schedule: BatchOrder[str] = BatchOrder(order, STEPS, window=3)
    schedule.offer("a", 0, "a0")
    assert drain(schedule) == [("a", 0)]
    schedule.offer("a", 1, "a1")
    schedule.drop("a")
    for device, step in [("b", 0), ("c", 1), ("c", 0)]:
        schedule.offer(device, step, f"{device}{step}")
    assert drain(schedule) == [("b", 0), ("c", 0), ("c", 1)]
    assert "a" not in schedule
    assert schedule.missing() == []


@pytest.mark.parametrize("order", ["step", "device"])
@pytest.mark.timeout(10)
def test_turns_of_a_dropped_device_with_a_huge_claim_are_skipped_at_once(
    order: Literal["step", "device"],
) -> None:
    batches: BatchOrder[str] = BatchOrder(order, {"a": 2, "evil": 1 << 57}, window=8)
    for step in range(2):
        batches.offer("a", step, f"a{step}")
    batches.offer("evil", 0, "evil0")
    taken = [batches.take()]
    batches.drop("evil")
    while (one := batches.take()) is not None:
        taken.append(one)
    assert [one[0] for one in taken if one is not None] == ["a", "a"]
    assert batches.missing() == []
