# SPDX-License-Identifier: Apache-2.0
"""A trainer is opened only where its features fit a message."""

from __future__ import annotations

import pytest

from splitee.errors import NetworkError
from splitee.protocol.run_spec import RunSpec
from splitee_device.data.images import open_data
from splitee_device.training.trainer import open_trainer


def test_cut_whose_features_exceed_a_message_is_refused_with_the_reason() -> None:
    spec = RunSpec(
        protocol=1,
        run="run-a",
        network="squeezenet1_1",
        num_classes=10,
        rounds=1,
        batch_size=4096,
        input_shape=(3, 224, 224),
    )
    data = open_data("builtin:fashion-mnist", input_shape=(3, 224, 224), limit=4)
    with pytest.raises(NetworkError, match=r"^cut 1: the features of 4096 images take \d+ MiB"):
        open_trainer(spec, 1, "pi-1", data)
