# SPDX-License-Identifier: Apache-2.0
"""Commits without a device: what it keeps, whether or not it began the round, and after a restart."""

from __future__ import annotations

import pytest
import torch
from averaged_models import BATCH, STRATEGIES, Fleet, observed, same


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
