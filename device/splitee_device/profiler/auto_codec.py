# SPDX-License-Identifier: Apache-2.0
"""`splitee server --codec auto`: each device uses the codec that suits its CPU, its cut and its link."""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from splitee.cli.words import milliseconds
from splitee.errors import SpliteeError
from splitee.mqtt.options import LinkOptions
from splitee.protocol.codecs import CODECS, DEFAULT, encode_tensor
from splitee.protocol.run_spec import RunSpec
from splitee.round_time import pace
from splitee_device.profiler.cost_model import LinkSpeed
from splitee_device.profiler.kept_choice import KeptChoice
from splitee_device.profiler.link_speed import open_echo
from splitee_device.training.trainer import ClientTrainer

CANDIDATES = ("fp16", "int8", "int8+zstd")  # every other codec takes longer than one of these, for more bytes
STEPS = 4  # batches to train for the measurement; the first, which allocates, does not count
TIE = 1.02  # paces closer than this cannot be told apart by measurement

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CodecCost:
    """The cost of a codec for one batch: seconds to encode it, bytes on the wire."""

    codec: str
    encoding: float
    payload: int


def choose_codec(
    costs: Sequence[CodecCost], step: float, link: LinkSpeed | None, window: int
) -> tuple[str, str]:
    """The codec with the fastest pace, or of those within 2 % of it the one with the fewest bytes; and why.

    Args:
        step: seconds to train a batch.
        link: None: unknown; then no time or accuracy is spent on fewer bytes.
    """
    if link is None:
        return DEFAULT, "the link is not measured"

    def seconds(cost: CodecCost) -> float:
        return pace(step + cost.encoding, cost.payload / link.upload, link.round_trip, window)

    fastest = min(map(seconds, costs))
    best = min((cost for cost in costs if seconds(cost) <= TIE * fastest), key=lambda cost: cost.payload)
    each = ", ".join(f"{cost.codec} {milliseconds(seconds(cost))}" for cost in costs)
    return best.codec, f"a batch every {each}; {best.payload} bytes a batch, {link.upload / 1e6:.3g} MB/s"


def measure_codecs(trainer: ClientTrainer) -> tuple[float, list[CodecCost]]:
    """Seconds of a training step, and the costs of all candidates, from the first batches of a round.

    The trainer can be used afterwards, but has trained: do not pass the run's own.
    """
    steps: list[float] = []
    encoding: dict[str, list[float]] = {codec: [] for codec in CANDIDATES}
    payload: dict[str, int] = {}
    batches = trainer.round(1)
    for _ in range(min(STEPS, trainer.steps)):
        begun = time.perf_counter()
        features = next(batches).features
        steps.append(time.perf_counter() - begun)
        for codec in CANDIDATES:
            begun = time.perf_counter()
            payload[codec] = len(encode_tensor(codec, features).data)
            encoding[codec].append(time.perf_counter() - begun)
    costs = [CodecCost(codec, _typical(encoding[codec]), payload[codec]) for codec in CANDIDATES]
    return _typical(steps), costs


def _typical(seconds: list[float]) -> float:
    return median(seconds[1:] or seconds)


@dataclass(frozen=True)
class AutoCodec:
    """How a device chooses its codec by itself."""

    options: LinkOptions
    device: str

    def choose(
        self, spec: RunSpec, cut: int, state: Path, trainer_at: Callable[[int], ClientTrainer], *, fresh: bool
    ) -> str:
        """The codec for a run. The choice in `state` for this run stays, unless `fresh` discards it.

        It is kept before the first batch is sent, so that a run continues with the same bits after a restart.

        Raises:
            StateError: the choice cannot be kept.
        """
        kept = KeptChoice(state, "codec", CODECS)
        stored = None if fresh else kept.of(spec.run)
        if stored is not None:
            return stored
        step, costs = measure_codecs(trainer_at(cut))
        gc.collect()  # that trainer has reference cycles, and the run's own needs its memory
        codec, reason = choose_codec(
            costs, step, self._link(max(cost.payload for cost in costs)), spec.window
        )
        log.info("codec %s at cut %d: %s", codec, cut, reason)
        kept.keep(spec.run, codec)
        return codec

    def _link(self, payload: int) -> LinkSpeed | None:
        try:
            with open_echo(self.options, self.device) as echo:
                return echo.speed(payload)
        except SpliteeError as error:
            log.warning("link not measured: %s", error)
            return None
