# SPDX-License-Identifier: Apache-2.0
"""The costs of all cuts, interpolated stage by stage from the cuts that were measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from math import prod

from splitee.protocol.codecs import codec
from splitee.protocol.cut_batch import oversized
from splitee.protocol.run_spec import RunSpec
from splitee.round_time import pace, round_seconds
from splitee_device.data.storage import memory_of
from splitee_device.profiler.costs import CutCosts, Description, Measured

FLOAT = 4  # bytes
MARGIN = 1.15  # on memory that was not measured at its cut


@dataclass(frozen=True)
class LinkSpeed:
    """The link to the broker: upload in bytes a second, seconds of a round trip, CPU for sending."""

    upload: float
    round_trip: float
    message_cpu: float = 0.0  # CPU seconds to send any message
    byte_cpu: float = 0.0  # and for each of its bytes

    def cpu(self, payload: int) -> float:
        """CPU seconds to send `payload` bytes."""
        return self.message_cpu + self.byte_cpu * payload


@dataclass(frozen=True)
class Work:
    """A device's work in a round, and the limits for its choice."""

    samples: int  # training images
    steps: int  # batches a round
    reserve: int  # bytes that must stay free
    cpu_share: float = 1.0  # share of the usable cores that training may keep busy
    link: LinkSpeed | None = None
    lowest_cut: int = 1  # that its owner allows


@dataclass(frozen=True)
class CutRow:
    """One cut. Times in seconds, memory in bytes; `inference` is for one image. None: unknown."""

    cut: int
    stage: str
    measured: bool  # False: interpolated
    step: float
    forward: float
    backward: float
    optimizer: float
    spread: float
    encoding: float
    sending: float  # seconds that sending takes from training, if training keeps all cores busy
    memory: int
    needed: int  # memory in total: torch, training, images
    code: int  # of that, pages of files
    inference: float
    inference_memory: int
    parameters: int
    trained: int  # of the parameters: not those of frozen stages
    payload: int  # bytes per batch on the wire
    upload: float | None
    round: float
    cpu_share: float
    obstacle: str  # why it does not fit; empty: it fits

    @property
    def compute(self) -> float:
        """Seconds per batch that training, encoding and sending keep the CPU busy."""
        return self.step + self.encoding + self.sending

    @property
    def fits(self) -> bool:
        return not self.obstacle


def modelled_memory(spec: RunSpec, description: Description, cut: int) -> int:
    """Bytes that training at a cut needs by count: weights, their copies, tensors saved for backward.

    First come all weights of the network, because it is built whole and cut then. Later there are the weights
    of the cut, a copy of them from the run's beginning, their gradients and momentum, and the window's
    payloads; and either a step (saved tensors, features and their gradient) or the state being written
    (weights and momentum, twice). Frozen stages have neither gradients nor momentum, and save nothing.
    """
    stages = description.stages
    held = FLOAT * sum(stage.parameters for stage in stages[:cut])
    trained = FLOAT * sum(stage.parameters for stage in stages[spec.frozen : cut])
    shape = (spec.batch_size, *stages[cut - 1].feature_shape)
    window = min(spec.window * codec(spec.codec).size(shape), spec.window_bytes)
    step = spec.batch_size * sum(stage.saved_bytes for stage in stages[:cut]) + 2 * FLOAT * prod(shape)
    whole = FLOAT * sum(stage.parameters for stage in stages)
    both = 2 * held + 2 * trained
    return max(whole, both + window + max(step, both))


def predicted_memory(spec: RunSpec, description: Description, costs: Mapping[int, CutCosts], cut: int) -> int:
    """Bytes at the peak of training: those counted, and what measured neighbours needed beyond the count."""
    beyond = {known: c.memory - modelled_memory(spec, description, known) for known, c in costs.items()}
    return round(modelled_memory(spec, description, cut) + between(beyond, cut))


def predict(measured: Measured, work: Work) -> tuple[CutRow, ...]:
    """All cuts, in order; empty if none could be measured."""
    if not measured.costs:
        return ()
    model = _Model(measured, work)
    return tuple(model.row(cut) for cut in range(1, len(measured.description.stages)))


def payload_bytes(measured: Measured) -> int:
    """Bytes of the largest batch that training at any measured cut sends."""
    return max((costs.payload for costs in measured.costs.values()), default=0)


def between(known: Mapping[int, float], cut: int) -> float:
    """The value at `cut` on the line between its known neighbours, or the nearest one's."""
    return along(known, range(max(*known, cut) + 1), min(max(cut, min(known)), max(known)))


def along(known: Mapping[int, float], place: Sequence[float], cut: int) -> float:
    """The value at `cut`, if values grow evenly with `place` between the known cuts.

    Beyond the first and the last known cut, they are in proportion to `place`.
    """
    if cut in known:
        return known[cut]
    cuts = sorted(known)
    if not cuts[0] < cut < cuts[-1]:
        nearest = cuts[0] if cut < cuts[0] else cuts[-1]
        return known[nearest] * place[cut] / place[nearest] if place[nearest] else known[nearest]
    low, high = next((a, b) for a, b in pairwise(cuts) if cut < b)
    span = place[high] - place[low]
    part = (place[cut] - place[low]) / span if span else 0.0
    return max(known[low] + part * (known[high] - known[low]), 0.0)


class _Model:
    """The measured costs of one network, for the prediction of any cut."""

    def __init__(self, measured: Measured, work: Work) -> None:
        self._measured = measured
        self._work = work
        self._stages = measured.description.stages
        self._costs = measured.costs
        self._forward, self._backward = self._stage_times()
        self._code = max(costs.code for costs in self._costs.values())
        self._parameters = list(accumulate((stage.parameters for stage in self._stages), initial=0))
        trained = (0 if self._is_frozen(at) else stage.parameters for at, stage in enumerate(self._stages))
        self._trained = list(accumulate(trained, initial=0))

    def row(self, cut: int) -> CutRow:
        measured, work = self._measured, self._work
        known = self._costs.get(cut)
        forward = self._along(lambda costs: costs.forward, self._forward, cut)
        backward = self._along(lambda costs: costs.backward, self._backward, cut)
        optimizer = self._along(lambda costs: costs.optimizer, self._trained, cut)
        rest = self._between(lambda c: c.step - c.forward - c.backward - c.optimizer, cut)
        step = known.step if known else forward + backward + optimizer + rest
        size = codec(measured.spec.codec).size(self._shape(cut))
        encoding = size * self._between(lambda c: c.encoding / self._size(c.cut), cut)
        payload = known.payload if known else round(size * self._between(self._shrinking, cut))
        upload = payload / work.link.upload if work.link else None
        sending_cpu = work.link.cpu(payload) if work.link else 0.0
        sending = sending_cpu / measured.cores if measured.threads >= measured.cores else 0.0
        compute = step + encoding + sending
        timing = (compute, upload or 0.0, work.link.round_trip if work.link else 0.0)
        window = measured.spec.window
        cpu = (step + encoding) * self._between(lambda c: c.cpu / (c.step + c.encoding), cut) + sending_cpu
        share = cpu / pace(*timing, window) / measured.cores
        memory = predicted_memory(measured.spec, measured.description, self._costs, cut)
        needed = self._needed(memory, cut)
        return CutRow(
            cut=cut,
            stage=self._stages[cut - 1].name,
            measured=known is not None,
            step=step,
            forward=forward,
            backward=backward,
            optimizer=optimizer,
            spread=self._between(lambda costs: costs.spread / costs.step, cut) * step,
            encoding=encoding,
            sending=sending,
            memory=memory,
            needed=needed,
            code=self._code,
            inference=self._along(lambda costs: costs.inference, self._forward, cut),
            inference_memory=round(self._between(lambda costs: costs.inference_memory, cut)),
            parameters=self._parameters[cut],
            trained=self._trained[cut],
            payload=payload,
            upload=upload,
            round=round_seconds(work.steps, *timing, window),
            cpu_share=min(share, 1.0),
            obstacle=self._obstacle(cut, needed, min(share, 1.0)),
        )

    def _obstacle(self, cut: int, needed: int, share: float) -> str:
        failed, available = self._measured.failed, self._measured.available
        if cut in failed:
            return failed[cut]
        if cut < self._work.lowest_cut:
            return f"it is below --lowest-cut {self._work.lowest_cut}"
        if too_much := oversized(self._measured.spec, self._stages[cut - 1].feature_shape):
            return too_much
        if available is not None and needed + self._work.reserve > available:
            return "memory"
        return "CPU share" if share > self._work.cpu_share + 1e-9 else ""

    def _needed(self, memory: int, cut: int) -> int:
        """Bytes with torch, its code and the images; a cut that was not measured gets MARGIN on top."""
        margin = 1.0 if cut in self._costs else MARGIN
        spec = self._measured.spec
        images = memory_of(self._work.samples, prod(spec.input_shape), self._measured.available)
        images += self._work.samples * (2 * spec.num_classes if spec.soft_labels else 0)
        return self._measured.description.base_memory + self._code + images + round(margin * memory)

    def _stage_times(self) -> tuple[list[float], list[float]]:
        """Seconds from the start to each cut, forward and backward; unmeasured stages by operations."""
        deepest = max((costs.stage_cpu for costs in self._costs.values()), key=len, default=())
        forward = [float(stage.macs) for stage in self._stages]
        backward = [0.0 if self._is_frozen(at) else count for at, count in enumerate(forward)]
        series = []
        for times, macs in zip(zip(*deepest, strict=True), (forward, backward), strict=False):
            rate = sum(times) / max(sum(macs[: len(deepest)]), 1.0)
            rest = [rate * count for count in macs[len(deepest) :]]
            series.append(list(accumulate([*times, *rest], initial=0.0)))
        if not series:
            return list(accumulate(forward, initial=0.0)), list(accumulate(backward, initial=0.0))
        return series[0], series[1]

    def _is_frozen(self, place: int) -> bool:
        """Whether the stage at this place, from 0, is not trained."""
        return place < self._measured.spec.frozen

    def _along(self, of: Callable[[CutCosts], float], place: Sequence[float], cut: int) -> float:
        return along({known: of(costs) for known, costs in self._costs.items()}, place, cut)

    def _between(self, of: Callable[[CutCosts], float], cut: int) -> float:
        return between({known: of(costs) for known, costs in self._costs.items()}, cut)

    def _shrinking(self, costs: CutCosts) -> float:
        return costs.payload / self._size(costs.cut)

    def _size(self, cut: int) -> int:
        return codec(self._measured.spec.codec).size(self._shape(cut))

    def _shape(self, cut: int) -> tuple[int, ...]:
        return self._measured.spec.batch_size, *self._stages[cut - 1].feature_shape
