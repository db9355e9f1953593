# SPDX-License-Identifier: Apache-2.0
"""Shares of classes in each device's batches, which the balanced loss of a trunk allows for."""

from __future__ import annotations

import math

import torch

from splitee.protocol.run_spec import RunSpec
from splitee.training.objective import MISSING_SHARE, class_offsets
from splitee_server.learning.class_mix import ClassMix

CPU = torch.device("cpu")


def spec(balanced: bool) -> RunSpec:
    return RunSpec(
        protocol=1, run="r", network="tiny_networks:tiny", num_classes=3, rounds=1, balanced_loss=balanced
    )


def test_offsets_are_logarithms_of_the_class_shares_of_each_device() -> None:
    mix = ClassMix(spec(balanced=True))
    mix.add("a", torch.tensor([0, 0, 1, 0]))
    mix.add("b", torch.tensor([2]))
    mix.add("a", torch.tensor([1, 1, 1, 0]))
    half, none = math.log(0.5 + MISSING_SHARE), math.log(MISSING_SHARE)
    torch.testing.assert_close(mix.offsets("a", CPU), torch.tensor([half, half, none]))
    torch.testing.assert_close(
        mix.offsets("a", CPU), class_offsets(spec(balanced=True), torch.tensor([0, 1]).numpy())
    )
    assert mix.offsets("nobody", CPU) == 0.0


def test_class_mix_continues_from_its_saved_state() -> None:
    mix, again = ClassMix(spec(balanced=True)), ClassMix(spec(balanced=True))
    mix.add("a", torch.tensor([0, 1]))
    again.load(mix.state())
    for one in (mix, again):
        one.add("a", torch.tensor([2, 2]))
    assert torch.equal(torch.as_tensor(mix.offsets("a", CPU)), torch.as_tensor(again.offsets("a", CPU)))


def test_class_mix_counts_no_labels_without_balanced_loss() -> None:
    mix = ClassMix(spec(balanced=False))
    mix.add("a", torch.tensor([0]))
    assert (mix.state(), mix.offsets("a", CPU)) == ({}, 0.0)
