# SPDX-License-Identifier: Apache-2.0
"""Settings that depend on the devices: frozen stages of `auto`; mean, deviation and exits of `fleet`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from msgspec.structs import replace

from splitee.networks.split import SplitNetwork
from splitee.protocol.run_spec import RunSpec
from splitee_server.learning.fleet_model import FleetModel
from splitee_server.learning.initial.normalization import FLEET
from splitee_server.members.members import Members
from splitee_server.rounds.checkpoints import Checkpoints

FEW_IMAGES = 200  # per class in the whole fleet; with fewer, trained stages are better left unchanged
LEAST_STD = 1 / 255  # of a channel; images of one grey have none

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DeviceReport:
    """What a device has reported: its cut, and the number of its training images.

    `mean` and `std` have one value per channel; they are empty if the run does not need them.
    """

    cut: int
    count: int
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()


def settle_run(spec: RunSpec, model: FleetModel, members: Members, checkpoints: Checkpoints) -> RunSpec:
    """The run with the settings that depend on the devices present; saved before any device gets them."""
    devices = [
        DeviceReport(member.cut, member.train_samples, member.pixel_mean, member.pixel_std)
        for member in members.active()
    ]
    settled = settle(spec, model.network, devices)
    checkpoints.settle(settled)
    model.settle(settled)
    log.info(
        "settings that depend on the devices' images: %s, mean %s, deviation %s, exits %s",
        f"stages 1 to {settled.frozen} frozen" if settled.frozen else "no stage frozen",
        _words(settled.mean),
        _words(settled.std),
        f"at the cuts {', '.join(map(str, settled.exit_cuts))}" if settled.exit_cuts else "of their own",
    )
    return settled


def settle(spec: RunSpec, network: SplitNetwork, devices: Sequence[DeviceReport]) -> RunSpec:
    """The specification with the settings that depend on the devices.

    Mean and deviation are medians over the devices, channel by channel, so that fewer than half of the
    devices cannot shift them by false values.
    """
    changed: dict[str, object] = {"settled": True}
    if spec.shares_exits:
        changed["exit_cuts"] = tuple(sorted({device.cut for device in devices}))
    if spec.freeze == "auto":
        changed["frozen"] = frozen_stages(spec, network, sum(device.count for device in devices))
    if spec.normalize == FLEET:
        channels = spec.input_shape[0]
        reported = [one for one in devices if len(one.mean) == len(one.std) == channels]
        if reported:
            mean = np.median([one.mean for one in reported], axis=0)
            std = np.maximum(np.median([one.std for one in reported], axis=0), LEAST_STD)
            changed |= {"mean": tuple(mean.tolist()), "std": tuple(std.tolist())}
        else:
            log.warning("no device reports its images' mean and deviation: 0.5 is taken for both")
    return replace(spec, **changed)


def frozen_stages(spec: RunSpec, network: SplitNetwork, images: int) -> int:
    """Number of stages that `--freeze auto` freezes, for a number of training images in the fleet.

    None with random weights. With trained weights the first half, if a class has few images,
    otherwise none.
    """
    if not spec.weights or images >= FEW_IMAGES * spec.num_classes:
        return 0
    return network.num_layers // 2


def _words(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:.3f}" for value in values)
