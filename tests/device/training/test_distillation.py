# SPDX-License-Identifier: Apache-2.0
"""A device learns from soft labels only for images that have one, and as much as the run says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from msgspec.structs import replace

from splitee.networks.split import build_for
from splitee.protocol.run_spec import RunSpec
from splitee.training.epochs import epoch_batches
from splitee.training.soft_labels import SoftLabels, rows_per_round
from splitee_device.data.images import DeviceData, open_data
from splitee_device.training.trainer import ClientTrainer

SPEC = RunSpec(
    protocol=1,
    run="r",
    network="tiny_networks:tiny",
    num_classes=10,
    rounds=3,
    seed=1,
    momentum=0.0,
    steps=1,
    soft_labels=1.0,
)


@pytest.fixture(scope="module")
def data() -> DeviceData:
    return open_data("builtin:fashion-mnist", input_shape=(3, 32, 32), limit=128)


def taught(data: DeviceData, spec: RunSpec, labels: SoftLabels | None) -> tuple[str, float]:
    """The client network after round 2, and the round's loss on the labels."""
    trainer = ClientTrainer(build_for(spec), 2, spec, "pi-1", data)
    for _ in trainer.round(2, labels):
        pass
    return trainer.digest(), trainer.loss


def certain(classes: np.ndarray) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.from_numpy(classes), 10).half()


def test_soft_labels_equal_to_the_labels_double_the_gradient(data: DeviceData) -> None:
    """One batch without momentum or decay: with weight 1 its gradient is that of twice the learning rate."""
    spec = replace(SPEC, weight_decay=0.0)
    (batch,) = epoch_batches(spec, "pi-1", 2, len(data.train))
    labels = SoftLabels(2, certain(data.train.labels[batch]))
    doubled, loss = taught(data, spec, labels)
    plain, same = taught(data, replace(spec, learning_rate=2 * spec.learning_rate), None)
    assert doubled == plain
    assert loss == same
    assert taught(data, replace(spec, soft_labels=0.5), labels)[0] != doubled


def test_image_without_a_soft_label_is_trained_on_its_label_only(data: DeviceData) -> None:
    (seen,), (trained,) = (epoch_batches(SPEC, "pi-1", number, len(data.train)) for number in (1, 2))
    predictions = certain(np.zeros(rows_per_round(SPEC, len(data.train)), np.int64))
    common = np.intersect1d(seen, trained)
    assert 0 < len(common) < len(trained)
    without, _ = taught(data, SPEC, None)
    assert taught(data, SPEC, SoftLabels(1, predictions))[0] != without
    unknown = np.isin(seen, common)
    predictions[torch.from_numpy(unknown)] = 0  # the images of this batch have no soft label
    assert taught(data, SPEC, SoftLabels(1, predictions))[0] == without
