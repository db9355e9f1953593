# SPDX-License-Identifier: Apache-2.0
"""Windows: batches in flight stay within the budget, and every batch gets its turn."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from splitee_server.rounds.batch_order import BatchOrder, Order
from splitee_server.rounds.windows import Budget, Windows, batch_cost, queue_events

ONE = Budget(100, 1)


def windows_of(
    steps: dict[str, int],
    budget: Budget,
    *,
    window: int = 8,
    order: Order = "step",
    cost: Budget = ONE,
    served: Sequence[str] = (),
) -> Windows:
    costs = dict.fromkeys(steps, cost)
    return Windows(steps, costs, budget, window=window, order=order, served=served)


def test_few_devices_get_the_whole_window() -> None:
    windows = windows_of({"a": 20, "b": 20}, Budget(1 << 30, 4096))
    assert [windows.room(device) for device in "ab"] == [8, 8]
    assert windows.note_taken("a", 0) is None


def test_many_devices_share_the_byte_and_event_budgets() -> None:
    steps = {f"pi-{number:04}": 20 for number in range(1000)}
    assert windows_of(steps, Budget(500_000, 100_000)).room("pi-0000") == 5
    assert windows_of(steps, Budget(1 << 30, 3000)).room("pi-0000") == 3
    assert windows_of(steps, Budget(1 << 30, 6000), cost=Budget(100, 2)).room("pi-0000") == 3


def test_batch_cost_covers_the_features_and_each_part() -> None:
    cost = batch_cost(32, (64, 56, 56), 1 << 20)
    assert 4 * 32 * 64 * 56 * 56 < cost.size < 4 * 32 * 64 * 56 * 56 + 2000
    assert cost.events == 1259  # 20 KiB each, as behind a slow link
    assert batch_cost(4, (8, 2, 2), 1 << 20).events == 1


def test_event_queue_grows_with_the_number_of_devices() -> None:
    assert queue_events(3) >= 4096
    share = Budget(1 << 40, queue_events(1000) // 2).share(1000)
    assert share.events >= 8 * 4  # a whole window, in four parts each


def test_window_passes_to_the_device_whose_batch_is_needed_first() -> None:
    windows = windows_of({"a": 2, "b": 1, "c": 2}, Budget(200, 10))
    assert [windows.room(device) for device in "abc"] == [1, 1, 0]
    assert windows.note_taken("a", 0) == "c"
    assert [windows.room(device) for device in "abc"] == [0, 1, 1]
    assert windows.note_taken("b", 0) == "a"
    assert windows.note_taken("c", 0) == "c"
    assert [windows.room(device) for device in "abc"] == [1, 0, 1]


def test_dropped_device_passes_its_window_to_another() -> None:
    windows = windows_of({"a": 2, "b": 1, "c": 2}, Budget(100, 10))
    assert windows.drop("b") is None
    assert windows.drop("a") == "c"
    assert (windows.room("a"), windows.room("c")) == (0, 1)


@given(
    steps=st.dictionaries(st.sampled_from("abcdefgh"), st.integers(0, 5), min_size=1),
    size=st.integers(1, 2000),
    order=st.sampled_from(["step", "joint", "share", "device", "any"]),
    window=st.integers(1, 4),
    dropped=st.sets(st.sampled_from("abcdefgh")),
    choices=st.randoms(use_true_random=False),
)
def test_all_batches_arrive_and_those_in_flight_stay_within_the_budget(
    steps: dict[str, int], size: int, order: Order, window: int, dropped: set[str], choices: object
) -> None:
    """Devices send as soon as they may, in any order; some are dropped on the way."""
    windows = windows_of(steps, Budget(size, 100), window=window, order=order)
    batches = BatchOrder[int](order, steps, window)
    sent = dict.fromkeys(steps, 0)
    to_drop = sorted(dropped & steps.keys())
    while batches.missing():
        may = [d for d in sent if sent[d] < min(batches.next_step(d) + windows.room(d), steps[d])]
        if to_drop and choices.random() < 0.2:  # type: ignore[attr-defined]
            gone = to_drop.pop()
            sent.pop(gone)
            batches.drop(gone)
            windows.drop(gone)
            continue
        taken = batches.take()
        if taken is not None:
            windows.note_taken(taken[0], taken[1])
            continue
        assert may, "nobody may send, and somebody is waited for"
        device = choices.choice(may)  # type: ignore[attr-defined]
        assert batches.offer(device, sent[device], sent[device]) == "taken"
        sent[device] += 1
        in_flight = sum(sent[d] - batches.next_step(d) for d in sent)
        assert ONE.size * in_flight <= max(size, ONE.size)


def test_windows_are_given_to_devices_in_the_order_of_service() -> None:
    """Otherwise devices served later would keep all windows, and wait for those served now."""
    windows = windows_of({"a": 2, "b": 1, "c": 2}, Budget(100, 10), served=["c", "a", "b"])
    assert [windows.room(device) for device in "abc"] == [0, 0, 1]
    assert windows.note_taken("c", 0) == "c"
    assert windows.note_taken("c", 1) == "a"
