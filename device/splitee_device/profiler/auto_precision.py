# SPDX-License-Identifier: Apache-2.0
"""`splitee device --precision`: the precision of this device, chosen by itself or by its owner."""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable
from statistics import median
from typing import get_args

from msgspec.structs import replace

from splitee.cli.precision import WantedPrecision, has_bf16
from splitee.cli.words import milliseconds
from splitee.durable import StateDirectory
from splitee.errors import StateError
from splitee.protocol.fields import Precision
from splitee.protocol.run_spec import RunSpec
from splitee_device.profiler.kept_choice import KeptChoice
from splitee_device.training.trainer import ClientTrainer

STEPS = 6  # batches to train for the measurement; the first, which allocates, does not count
LEAST_GAIN = 1.1  # speedup below which bfloat16 is not worth its rounding, and may be chance

log = logging.getLogger(__name__)


def choose_precision(
    wanted: WantedPrecision,
    spec: RunSpec,
    state: StateDirectory,
    trainer_of: Callable[[RunSpec], ClientTrainer],
    *,
    fresh: bool,
) -> Precision:
    """The precision of a run on this device. It stays for the whole run, unless `fresh` discards it.

    `auto` chooses bf16 if the CPU has it and it is measured to help. The choice is kept before the first
    batch is sent.

    Args:
        trainer_of: makes the trainer of a run, for the measurement.

    Raises:
        StateError: the run began with another precision, or the choice cannot be kept.
    """
    kept = KeptChoice(state.path, "precision", get_args(Precision))
    stored = None if fresh else kept.of(spec.run) or _legacy_precision(state, spec.run)
    if stored is not None:
        if wanted not in ("auto", stored):
            raise StateError(
                f"{state.path} holds run {spec.run} with --precision {stored}: --precision {stored} "
                "goes on, --fresh starts over, another --state keeps it"
            )
        return "bf16" if stored == "bf16" else "fp32"
    chosen = _measured(spec, trainer_of) if wanted == "auto" else wanted
    kept.keep(spec.run, chosen)
    return chosen


def faster(seconds: dict[Precision, float]) -> Precision:
    """The choice, from the seconds of a training step in each precision."""
    return "bf16" if seconds["fp32"] >= LEAST_GAIN * seconds["bf16"] else "fp32"


def _legacy_precision(state: StateDirectory, run: str) -> Precision | None:
    """The precision that an earlier release used for a run in the state; None: there is no such run."""
    return "fp32" if (state.facts() or {}).get("run") == run else None


def _measured(spec: RunSpec, trainer_of: Callable[[RunSpec], ClientTrainer]) -> Precision:
    if not has_bf16():
        log.info("precision fp32: this CPU has no bfloat16")
        return "fp32"
    seconds: dict[Precision, float] = {
        precision: _step(trainer_of(replace(spec, precision=precision))) for precision in get_args(Precision)
    }
    chosen = faster(seconds)
    each = ", ".join(f"{precision} {milliseconds(taken)}" for precision, taken in seconds.items())
    log.info("precision %s: a training step takes %s", chosen, each)
    return chosen


def _step(trainer: ClientTrainer) -> float:
    """Seconds of a training step. The trainer can be used afterwards, but has trained."""
    seconds = []
    batches = trainer.round(1)
    for _ in range(min(STEPS, trainer.steps)):
        begun = time.perf_counter()
        next(batches)
        seconds.append(time.perf_counter() - begun)
    del batches, trainer
    gc.collect()  # it has reference cycles, and the next one needs its memory
    return median(seconds[1:] or seconds)
