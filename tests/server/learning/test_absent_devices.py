# SPDX-License-Identifier: Apache-2.0
"""Commits without a device: what it keeps, whether or not it began the round, and after a restart."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from averaged_models import BATCH, STEPS, STRATEGIES, Fleet, observed, same

from splitee.training.state import pack_state


def copy_of(fleet: Fleet, device: str) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in fleet.model.client(device).items()}


@pytest.mark.parametrize("resumed", [False, True])
@STRATEGIES
def test_device_with_older_weights_keeps_their_statistics(strategy: str, resumed: bool) -> None:
    """Device d is alone at its cut in the round; then c moves there, and `late` joins there."""
    fleet, generator = Fleet(strategy, statistics_batches=2), torch.Generator().manual_seed(7)
    fleet.commit(1, fleet.train(1))
    fleet.model.refresh(observed(fleet, generator))
    fleet.commit(2, fleet.train(2, "a", "b", "c"), c=3)
    before = {device: copy_of(fleet, device) for device in fleet.cuts}
    if resumed:
        fleet = fleet.restarted()
    found = observed(fleet, generator)
    fleet.model.join("late", 3, BATCH)
    fleet.model.adopt("late")
    fleet.model.refresh(found)
    assert same(fleet.model.client("d"), before["d"])
    assert all(not same(fleet.model.client(device), before[device]) for device in "abc")
    assert same(fleet.model.client("late"), fleet.model.client("c"))


def train_batches(fleet: Fleet, device: str, number: int, count: int) -> None:
    """Train the first batches of a device's round."""
    generator = torch.Generator().manual_seed(100 * number)
    for step in range(count):
        features, labels = fleet.features(device, generator), torch.arange(BATCH) % 10
        fleet.model.train(device, features, labels, round_number=number, step=step, steps=STEPS)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"optimizer": "adamw", "fused": True},
        {"trunk_momentum": "dropped"},
        {"balanced_loss": True, "soft_labels": 1.0, "largest_loss": 1.001, "server_momentum": 0.5},
        {"clip_updates": 0.9, "average": "median", "statistics_batches": 2},
    ],
    ids=["usual", "adamw", "without-momentum", "with-memory", "robust"],
)
def test_commits_do_not_depend_on_how_many_batches_of_a_dropped_device_have_come(
    settings: dict[str, Any],
) -> None:
    """With a trunk for each device. One device drops out of its first round, and one of a later round."""

    def state_with(arrived: int) -> bytes:
        fleet = Fleet("averaging", **settings)
        for number, absent in enumerate(("d", "b", ""), start=1):
            sent = fleet.train(number, *(device for device in fleet.cuts if device != absent))
            if absent:
                train_batches(fleet, absent, number, arrived)
                fleet.model.forget(absent)
            fleet.commit(number, sent)
        return pack_state(fleet.model.state())

    assert [state_with(arrived) for arrived in (1, STEPS)] == [state_with(0)] * 2
