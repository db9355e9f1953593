# SPDX-License-Identifier: Apache-2.0
"""Which soft labels the server holds, and when it drops them."""

from __future__ import annotations

import pytest
import torch

from splitee.protocol.run_spec import RunSpec
from splitee_server.learning.soft_labels import SoftLabelStore

SPEC = RunSpec(protocol=1, run="r", network="made-up", num_classes=3, rounds=5, batch_size=4, soft_labels=1.0)
BATCH = torch.zeros(4, 3)


@pytest.fixture
def store() -> SoftLabelStore:
    """Two devices with two batches each, after a round."""
    store = SoftLabelStore(SPEC)
    for device in ("pi-1", "pi-2"):
        store.count(device, 8)
        for _ in range(2):
            store.add(device, 1, BATCH)
    store.end_round(1, {"pi-1": 8, "pi-2": 8})
    return store


def test_soft_labels_of_a_round_are_held_from_its_end(store: SoftLabelStore) -> None:
    for device in ("pi-1", "pi-2"):
        labels = store.of(device)
        assert labels is not None
        assert (labels.round, labels.probabilities.shape) == (1, (8, 3))


def test_device_with_another_number_of_images_loses_its_soft_labels(store: SoftLabelStore) -> None:
    store.count("pi-1", 8)
    store.count("pi-2", 9)  # in two batches, as before
    assert store.of("pi-1") is not None
    assert store.of("pi-2") is None


def test_round_with_a_changed_number_of_images_leaves_no_soft_labels(store: SoftLabelStore) -> None:
    store.add("pi-2", 2, BATCH)
    store.count("pi-2", 9)
    store.add("pi-2", 2, BATCH)
    store.end_round(2, {"pi-2": 8})
    assert store.of("pi-2") is None


def test_restored_soft_labels_are_held_until_the_number_of_images_changes(store: SoftLabelStore) -> None:
    again = SoftLabelStore(SPEC)
    again.load(store.state())
    for device in ("pi-1", "pi-2"):
        again.count(device, 8)  # as the commit says that they are of
    again.count("pi-2", 9)
    labels, before = again.of("pi-1"), store.of("pi-1")
    assert labels is not None and before is not None
    assert labels.round == before.round
    assert torch.equal(labels.probabilities, before.probabilities)
    assert again.of("pi-2") is None
