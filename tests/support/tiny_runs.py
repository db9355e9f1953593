# SPDX-License-Identifier: Apache-2.0
"""A run of the tiny network and a few images, for simulations that take a moment."""

from __future__ import annotations

import dataclasses
from typing import Any

from splitee.protocol.run_spec import RunSpec
from splitee.protocol.topics import PROTOCOL
from splitee_device.data.image_sets import ImageSet
from splitee_device.data.images import DeviceData, open_data

BATCH = 16
HELD_OUT = 256


def images(count: int) -> DeviceData:
    """`count` training images, and HELD_OUT held-out images."""
    data = open_data("builtin:fashion-mnist", input_shape=(3, 32, 32), limit=count)
    held_out = ImageSet(data.held_out.images[:HELD_OUT], data.held_out.labels[:HELD_OUT])
    return dataclasses.replace(data, held_out=held_out)


def in_messages(data: int, messages: int, tensors: int = 0) -> range:
    """Range of the bytes of `messages` messages that contain `data` bytes and `tensors` tensors.

    A message has fields for run, round, phase and step; a tensor has a name and a shape.
    """
    return range(data + 60 * (messages - tensors // 4), data + 200 * messages + 100 * tensors)


def tiny_run(**settings: Any) -> RunSpec:
    """A run of two rounds, with these settings changed."""
    known: dict[str, Any] = {
        "protocol": PROTOCOL,
        "run": "r",
        "network": "tiny_networks:tiny",
        "num_classes": 10,
        "rounds": 2,
        "seed": 1,
        "batch_size": BATCH,
    }
    return RunSpec(**{**known, **settings})
