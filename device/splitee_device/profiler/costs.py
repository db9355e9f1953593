# SPDX-License-Identifier: Apache-2.0
"""The requests of the profiler to its worker process, and the replies: one line of JSON each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

import msgspec
from msgspec.structs import replace

from splitee.protocol.encoding import JsonMessage
from splitee.protocol.run_spec import RunSpec


class Setup(JsonMessage, frozen=True):
    """The first line: what is to be trained, and how it is timed."""

    spec: RunSpec
    threads: int
    bursty: bool  # a CPU quota lets training run in bursts: only the mean over many periods counts


class StageFacts(msgspec.Struct, frozen=True):
    """One stage; the cost of a batch follows from these values."""

    name: str
    feature_shape: tuple[int, ...]
    parameters: int
    macs: int  # per sample
    saved_bytes: int  # per sample, kept from the forward for the backward pass


class Description(JsonMessage, frozen=True):
    """The reply to Setup: the network, and the memory of Python with torch before any of it is built."""

    stages: tuple[StageFacts, ...]  # all L of them
    base_memory: int  # bytes of anonymous memory: torch and all that the agent imports


class MeasureCut(JsonMessage, frozen=True):
    """Train at one cut for `seconds`; begin no step later than `most` seconds after the request."""

    cut: int
    seconds: float
    most: float
    stages: bool = False  # also report how the time divides among the stages


class CutCosts(JsonMessage, frozen=True):
    """The costs of training at one cut. Times are seconds per batch, memory is bytes beyond `base_memory`."""

    cut: int
    steps: int  # number of timed steps
    step: float  # forward, backward, optimizer, and making the batch
    forward: float
    backward: float
    optimizer: float
    spread: float  # median absolute deviation of step
    encoding: float  # features to bytes by the codec
    cpu: float  # CPU seconds of all threads, for step and encoding
    payload: int  # bytes per batch on the wire
    memory: int  # anonymous, at its peak
    code: int  # pages of libraries and of the program that training touches; constant, but needed too
    inference: float  # seconds per image
    inference_memory: int
    reference: float  # seconds of the reference between the steps: the device's speed at that moment
    seconds: float  # duration of the whole measurement
    stage_cpu: tuple[tuple[float, float], ...] = ()  # CPU seconds of forward and backward of stages 1..cut

    def slower(self, times: float) -> CutCosts:
        """The costs if all that the device computes took `times` as long."""
        return replace(self, **{name: times * getattr(self, name) for name in COMPUTED})


COMPUTED = ("step", "forward", "backward", "optimizer", "spread", "encoding", "cpu", "inference", "reference")


def at_mean_speed(measurements: Mapping[int, Sequence[CutCosts]]) -> dict[int, CutCosts]:
    """The costs by cut, converted by the references in all measurements to the device's mean speed."""
    mean = fmean(measurement.reference for at_cut in measurements.values() for measurement in at_cut)
    return {
        cut: mean_costs([measurement.slower(mean / measurement.reference) for measurement in at_cut])
        for cut, at_cut in measurements.items()
    }


def mean_costs(measurements: Sequence[CutCosts]) -> CutCosts:
    """The costs from several measurements at one cut: the means of times, the maxima of memory."""
    first = measurements[0]
    if len(measurements) == 1:
        return first
    values = {
        name: [getattr(measurement, name) for measurement in measurements] for name in first.__struct_fields__
    }
    means = [name for name in COMPUTED if name != "spread"]
    most = ("memory", "code", "inference_memory")
    between = (max(values["step"]) - min(values["step"])) / 2
    return replace(
        first,
        **{name: fmean(values[name]) for name in means},
        **{name: max(values[name]) for name in most},
        steps=sum(values["steps"]),
        seconds=sum(values["seconds"]),
        spread=max(*values["spread"], between),
    )


class Failed(JsonMessage, frozen=True):
    """A reply that explains why there are no costs."""

    message: str
    killed: bool = False  # the process that tried ran out of memory
    defect: bool = False  # it ended in an unforeseen way


class Reply(JsonMessage, frozen=True):
    """One line from the worker: exactly one of them."""

    description: Description | None = None
    costs: CutCosts | None = None
    failed: Failed | None = None


class Measured(JsonMessage, frozen=True):
    """The results within a budget, at one speed; the device keeps them in its state directory."""

    spec: RunSpec
    threads: int
    cores: float  # usable by this process
    available: int | None  # bytes of memory, including what this process already uses
    description: Description
    costs: dict[int, CutCosts]  # of the cuts that were measured
    failed: dict[int, str]  # cuts that could not be trained, and why
    seconds: float

    @property
    def reference(self) -> float | None:
        """Seconds of the reference at the speed to which all costs refer; None: nothing was measured."""
        return next((costs.reference for costs in self.costs.values()), None)
