# SPDX-License-Identifier: Apache-2.0
"""The accuracy with each codec: the same runs, in one process, on the built-in Fashion-MNIST."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean

from benchmarks.simulated_devices import simulated_devices
from splitee.protocol.run_spec import RunSpec
from splitee.protocol.topics import PROTOCOL
from splitee_lab.methods.simulation import Simulation

CODECS = ("fp32", "fp16", "int8+zstd")  # what zstd compresses comes back as it was
# Of the network of the protocol `small`; each device has a third of the 6,000 images.
CUTS = {"pi-1": 1, "pi-2": 2, "pi-3": 3}
INPUT = (3, 16, 16)


@dataclass(frozen=True)
class Accuracy:
    """The trunk's mean accuracy over all devices, each on the 1,000 test images, after one run."""

    codec: str
    seed: int
    trunk: float


def measure_accuracy(seeds: Sequence[int], rounds: int) -> Iterator[Accuracy]:
    """A run for each seed and codec; but for the codec, those of a seed are the same."""
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
    """Percentage points below fp32, the mean of the seeds, by codec."""
    means = {codec: fmean(one.trunk for one in results if one.codec == codec) for codec in CODECS}
    return {codec: 100 * (means["fp32"] - mean) for codec, mean in means.items()}
