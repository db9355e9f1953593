# SPDX-License-Identifier: Apache-2.0
"""Simulated devices, each with its shard of the built-in Fashion-MNIST."""

from __future__ import annotations

from collections.abc import Mapping

from splitee.samples.fitting import Shape
from splitee_device.data.images import Shard, open_data
from splitee_lab.methods.simulation import SimulatedDevice


def simulated_devices(
    cuts: Mapping[str, int], input_shape: Shape, seed: int, *, limit: int | None = None
) -> dict[str, SimulatedDevice]:
    """A device for each of `cuts`, by name; `limit`: training images per device."""
    return {
        device: SimulatedDevice(
            cut,
            open_data(
                "builtin:fashion-mnist",
                input_shape=input_shape,
                shard=Shard(index, len(cuts)),
                seed=seed,
                limit=limit,
            ),
        )
        for index, (device, cut) in enumerate(cuts.items(), start=1)
    }
