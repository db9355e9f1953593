# SPDX-License-Identifier: Apache-2.0
"""A page's figures of each device: on one set of held-out images, with the threshold in force there."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import mean

from splitee_lab.report.demo_report import DeviceResult, Report
from splitee_lab.report.inference_table import DeviceInference


@dataclass(frozen=True)
class Figures:
    """A device's accuracies on `images` held-out images, as fractions; None: nothing was evaluated.

    Attributes:
        threshold: uncertainty up to which the exit predicts.
        threshold_images: held-out images on which it was chosen; 0: it is the run's.
        in_service: measured with the released model; otherwise in the evaluation of the last round.
    """

    exit: float | None
    trunk: float | None
    adaptive: float | None
    offload: float | None
    threshold: float
    threshold_images: int
    images: int
    in_service: bool


def figures(report: Report) -> dict[str, Figures]:
    """Figures by device: those of its released model in service, if it has one."""
    released = {found.id: found for found in report.inference}
    return {
        device.id: _in_service(released[device.id])
        if device.id in released
        else _evaluated(device, report.threshold)
        for device in report.devices
    }


def average(values: Iterable[float | None]) -> float | None:
    """The mean of those that are known."""
    known = [value for value in values if value is not None]
    return mean(known) if known else None


def means(report: Report, figure: Callable[[Figures], float | None]) -> float | None:
    """A figure's mean over the devices that have it."""
    return average(figure(found) for found in figures(report).values())


def _in_service(found: DeviceInference) -> Figures:
    return Figures(
        exit=found.local.accuracy,
        trunk=found.trunk_accuracy,
        adaptive=found.adaptive.accuracy,
        offload=found.adaptive.offload_share,
        threshold=found.threshold,
        threshold_images=found.threshold_images,
        images=found.images,
        in_service=True,
    )


def _evaluated(device: DeviceResult, threshold: float) -> Figures:
    return Figures(
        exit=device.exit_accuracy,
        trunk=device.trunk_accuracy,
        adaptive=device.adaptive_accuracy,
        offload=device.offload_share,
        threshold=threshold,
        threshold_images=0,
        images=device.held_out_samples,
        in_service=False,
    )
