# SPDX-License-Identifier: Apache-2.0
"""Images that are resident on the network's device give the same batches as other images."""

from __future__ import annotations

import numpy as np
import torch

from splitee.protocol.run_spec import RunSpec
from splitee.protocol.topics import PROTOCOL
from splitee_device.data.batches import ResidentImages, batches_at
from splitee_device.data.image_sets import ImageSet


def test_resident_images_give_the_same_batches_as_other_images() -> None:
    run = RunSpec(
        protocol=PROTOCOL,
        run="r",
        network="resnet18",
        num_classes=10,
        rounds=1,
        mean=(0.4, 0.5, 0.6),
        std=(0.2,),
    )
    generator = np.random.default_rng(1)
    images = ImageSet(generator.integers(0, 256, (9, 3, 4, 5), np.uint8), np.arange(9))
    indices = np.array([7, 0, 7, 3])
    place = torch.device("cpu")
    (found,) = ResidentImages(place, images, run)([indices])
    (expected,) = batches_at(place, images, run)([indices])
    torch.testing.assert_close(found.images, expected.images)
    assert found.images.dtype == torch.float32
    assert torch.equal(found.labels, expected.labels)
    assert found.numbers.tolist() == [7, 0, 7, 3]
