# SPDX-License-Identifier: Apache-2.0
"""Commits without a device: what it keeps, whether or not it began the round, and after a restart."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from averaged_models import BATCH, STEPS, STRATEGIES, Fleet, digests_of, observed, same

from splitee_server.learning.lanes import in_order


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

    def state_with(arrived: int) -> dict[str, str]:
        fleet = Fleet("averaging", **settings)
        for number, absent in enumerate(("d", "b", ""), start=1):
            sent = fleet.train(number, *(device for device in fleet.cuts if device != absent))
            if absent:
                train_batches(fleet, absent, number, arrived)
                fleet.model.forget(absent)
            fleet.commit(number, sent)
        return digests_of(fleet.model)

    assert [state_with(arrived) for arrived in (1, STEPS)] == [state_with(0)] * 2


@pytest.mark.parametrize(
    ("strategy", "settings"),
    [
        ("sequential", {"balanced_loss": True, "soft_labels": 1.0, "largest_loss": 1.001}),
        ("averaging", {"aggregation_every": 1}),
        ("averaging", {"trunk_momentum": "dropped"}),
    ],
)
def test_round_that_all_devices_have_left_begins_anew_as_after_a_restart(
    strategy: str, settings: dict[str, Any]
) -> None:
    fleet = Fleet(strategy, **settings)
    fleet.commit(1, fleet.train(1))
    fleet.train(2, "b")
    if settings.get("trunk_momentum") == "dropped":
        fleet.model.sum_up("b")
    fleet.model.forget("b")
    fleet.model.abandon_round()
    states = []
    for one in (fleet, fleet.restarted()):
        sent = one.train(2)
        for device in in_order(one.cuts) if settings.get("trunk_momentum") == "dropped" else ():
            one.model.sum_up(device)
        one.commit(2, sent)
        states.append(digests_of(one.model))
    assert states[0] == states[1]
