# SPDX-License-Identifier: Apache-2.0
"""Whose batches a round does without: those that the trunk understands far worse than most."""

from __future__ import annotations

from splitee_server.learning.loss_filter import LossFilter


def after(multiple: float, *rounds: dict[str, float]) -> LossFilter:
    found = LossFilter(multiple)
    for losses in rounds:
        for device, loss in losses.items():
            found.add(device, loss - 0.1)
            found.add(device, loss + 0.1)
        found.end_round()
    return found


HONEST = {"a": 1.0, "b": 1.1, "c": 0.9}


def test_a_loss_above_the_multiple_of_the_median_leaves_a_device_out_of_the_next_round() -> None:
    found = after(1.5, {**HONEST, "d": 1.7})
    assert [device for device in "abcd" if found.leaves_out(device)] == ["d"]
    assert not any(after(1.7, {**HONEST, "d": 1.7}).leaves_out(device) for device in "abcd")


def test_it_comes_back_when_its_loss_does_and_stays_as_it_is_while_it_sends_nothing() -> None:
    bad = {**HONEST, "d": 1.7}
    assert after(1.5, bad, HONEST).leaves_out("d")
    assert not after(1.5, bad, {**HONEST, "d": 1.2}).leaves_out("d")


def test_two_devices_have_no_majority_and_zero_leaves_nobody_out() -> None:
    assert not after(1.1, {"a": 1.0, "d": 9.0}).leaves_out("d")
    assert not after(0.0, {**HONEST, "d": 9.0}).leaves_out("d")


def test_it_goes_on_from_its_state() -> None:
    found, restored = after(1.5, {**HONEST, "d": 1.7}), LossFilter(1.5)
    restored.load(found.state())
    assert found.state() == restored.state() == ["d"]
