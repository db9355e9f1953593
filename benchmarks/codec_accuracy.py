# SPDX-License-Identifier: Apache-2.0
"""Compares the accuracy of codecs in simulated runs on the built-in Fashion-MNIST."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean

from benchmarks.simulated_devices import simulated_devices
from splitee.protocol.run_spec import RunSpec
from splitee.protocol.topics import PROTOCOL
from splitee_lab.methods.simulation import Simulation

CODECS = ("fp32", "fp16", "int8+zstd")  # zstd is lossless
# Cuts of resnet8; each device has a third of the 6,000 training images.
CUTS = {"pi-1": 1, "pi-2": 2, "pi-3": 3}
INPUT = (3, 16, 16)


@dataclass(frozen=True)
class Accuracy:
    """The trunk's accuracy on the 1,000 test images after one run, the mean over the devices."""

    codec: str
    seed: int
    trunk: float


def measure_accuracy(seeds: Sequence[int], rounds: int) -> Iterator[Accuracy]:
    """Make a run for each seed and codec; the runs of a seed differ only in the codec."""
    for seed in seeds:
        devices = simulated_devices(CUTS, INPUT, seed)
        for codec in CODECS:
            spec = RunSpec(
                protocol=PROTOCOL,
                run="accuracy",
                network="splitee_lab.small_resnet:resnet8",
                num_classes=10,
                rounds=rounds,
                input_shape=INPUT,
                seed=seed,
                codec=codec,
            )
            *_, last = Simulation(spec, devices, evaluate_every=rounds).rounds()
            yield Accuracy(
                codec, seed, fmean(score.trunk_accuracy or 0.0 for score in last.accuracies.values())
            )


def points_lost(results: Sequence[Accuracy]) -> dict[str, float]:
    """Percentage points of accuracy below fp32 by codec, the mean over the seeds."""
    means = {codec: fmean(result.trunk for result in results if result.codec == codec) for codec in CODECS}
    return {codec: 100 * (means["fp32"] - mean) for codec, mean in means.items()}
