# SPDX-License-Identifier: Apache-2.0
"""Devices that a round leaves out: those whose loss is far above the median."""

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


def test_device_with_a_loss_above_the_multiple_of_the_median_is_left_out() -> None:
    found = after(1.5, {**HONEST, "d": 1.7})
    assert [device for device in "abcd" if found.leaves_out(device)] == ["d"]
    assert not any(after(1.7, {**HONEST, "d": 1.7}).leaves_out(device) for device in "abcd")


def test_device_stays_left_out_until_it_has_a_lower_loss() -> None:
    bad = {**HONEST, "d": 1.7}
    assert after(1.5, bad, HONEST).leaves_out("d")
    assert not after(1.5, bad, {**HONEST, "d": 1.2}).leaves_out("d")


def test_loss_filter_is_off_for_two_devices_or_a_multiple_of_zero() -> None:
    assert not after(1.1, {"a": 1.0, "d": 9.0}).leaves_out("d")
    assert not after(0.0, {**HONEST, "d": 9.0}).leaves_out("d")


def test_loss_filter_is_restored_from_its_state() -> None:
    found, restored = after(1.5, {**HONEST, "d": 1.7}), LossFilter(1.5)
    restored.load(found.state())
    assert found.state() == restored.state() == ["d"]
