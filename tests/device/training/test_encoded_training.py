# SPDX-License-Identifier: Apache-2.0
"""A device trains to the same weights, whether its images are in memory or decoded by threads meanwhile."""

from __future__ import annotations

from pathlib import Path

import pytest
from image_folders import write_photographs

from splitee.protocol.run_spec import RunSpec
from splitee.protocol.topics import PROTOCOL
from splitee_device.data.encoded import EncodedImages
from splitee_device.data.images import open_data
from splitee_device.data.storage import IN_MEMORY, Storage
from splitee_device.training.trainer import open_trainer

SPEC = RunSpec(
    protocol=PROTOCOL,
    run="r",
    network="tiny_networks:tiny",
    num_classes=2,
    rounds=2,
    batch_size=4,
    augmentation="photo",
    soft_labels=0.0,
)


def trained(folder: Path, storage: Storage) -> tuple[str, list[bytes]]:
    """The digest of the weights after two rounds, and all that was sent in training and evaluation."""
    data = open_data(str(folder), input_shape=SPEC.input_shape, storage=storage)
    assert isinstance(data.train, EncodedImages) == (storage.most == 0)
    trainer = open_trainer(SPEC, 1, "pi-1", data)
    sent = [batch.features.tobytes() for number in (1, 2) for batch in trainer.round(number)]
    sent += [batch.features.tobytes() for batch in trainer.evaluate()]
    return trainer.digest(), sent


@pytest.mark.parametrize("workers", [0, 2])
def test_weights_from_encoded_images_equal_those_from_memory(tmp_path: Path, workers: int) -> None:
    write_photographs(tmp_path, {"a": 14, "b": 8})
    assert trained(tmp_path, Storage(0, workers)) == trained(tmp_path, IN_MEMORY)
