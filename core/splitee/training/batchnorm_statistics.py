# SPDX-License-Identifier: Apache-2.0
"""BatchNorm's running mean and variance, computed again over a few batches with constant weights.

The running values of training lag behind the weights, and no device has seen those of averaged weights
(precise statistics: Wu and Johnson, Rethinking "Batch" in BatchNorm, 2021, section 3).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from splitee.protocol.run_spec import RunSpec
from splitee.training.epochs import steps_per_round

STATISTICS_PASSES = 2  # a device's own part sees this many times the batches that it sends
MEAN, VARIANCE = "running_mean", "running_var"  # last parts of a tensor's name


def is_statistic(name: str) -> bool:
    """Whether a tensor of this name is a running mean or variance."""
    return name.endswith((MEAN, VARIANCE))


def statistics_steps(spec: RunSpec, samples: int) -> int:
    """Batches that a device with so many images sends for statistics."""
    return min(spec.statistics_batches, steps_per_round(spec, samples))


class FreshStatistics:
    """Collects the statistics of a module's BatchNorm layers over the forward passes inside `batch`."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._sums: dict[str, Tensor] = {}
        self._batches = 0

    @contextmanager
    def batch(self) -> Iterator[None]:
        """A context whose forward passes count for layers in training mode; the module is not changed."""
        layers = {
            name: layer
            for name, layer in self._module.named_modules()
            if isinstance(layer, _BatchNorm) and layer.training and layer.track_running_stats
        }
        before = [(layer, layer.momentum, dict(layer.named_buffers())) for layer in layers.values()]
        kept = [{name: buffer.clone() for name, buffer in buffers.items()} for *_, buffers in before]
        try:
            for layer in layers.values():
                layer.momentum = 1.0  # the running values become the batch's own
            yield
            self._add(layers)
        finally:
            for (layer, momentum, buffers), values in zip(before, kept, strict=True):
                layer.momentum = momentum
                for name, buffer in buffers.items():
                    buffer.copy_(values[name])

    def add(self, other: FreshStatistics) -> None:
        """Add the batches of another instance for the same module."""
        self._batches += other._batches
        for name, total in other._sums.items():
            self._sums[name] = self._sums[name] + total if name in self._sums else total

    def state(self) -> dict[str, Any]:
        """The collected statistics, for another process with the same module."""
        return {"sums": dict(self._sums), "batches": self._batches}

    def load(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`."""
        self._sums, self._batches = dict(state["sums"]), state["batches"]

    def means(self) -> dict[str, Tensor]:
        """Means by the tensors' names in the module; empty before the first batch."""
        return {name: total / self._batches for name, total in self._sums.items()}

    def _add(self, layers: Mapping[str, nn.Module]) -> None:
        self._batches += 1
        for path, layer in layers.items():
            for last in (MEAN, VARIANCE):
                name, value = f"{path}.{last}", getattr(layer, last)
                self._sums[name] = self._sums[name] + value if name in self._sums else value.clone()


def pooled(found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Means and variances as means and mean squares, which may be averaged over devices; in float64."""
    return {
        name: tensor.double() + found[_mean_of(name)].double() ** 2
        if name.endswith(VARIANCE)
        else tensor.double()
        for name, tensor in found.items()
    }


def unpooled(averages: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Averages of results of `pooled` as means and variances; these include the devices' different means."""
    return {
        name: (tensor - averages[_mean_of(name)] ** 2).clamp(min=0) if name.endswith(VARIANCE) else tensor
        for name, tensor in averages.items()
    }


def _mean_of(variance: str) -> str:
    return variance.removesuffix(VARIANCE) + MEAN
