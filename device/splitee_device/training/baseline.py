# SPDX-License-Identifier: Apache-2.0
"""The baseline: the device trains its client network and exit on its own images, without the fleet."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
from msgspec.structs import replace

from splitee.protocol.fields import Fraction
from splitee.protocol.run_spec import RunSpec
from splitee_device.training.records import read_record, write_record
from splitee_device.training.trainer import ClientTrainer

BASELINE = "baseline.json"  # in a device's state

log = logging.getLogger(__name__)


class _Baseline(msgspec.Struct, frozen=True):
    run: str
    rounds: int
    cut: int
    accuracy: Fraction


def standalone_spec(spec: RunSpec) -> RunSpec:
    """The run's settings for a device that trains without a fleet: only its own exit, and no averaging."""
    return replace(spec, exits="own", exit_cuts=(), client_averaging="none", soft_labels=0.0)


def exit_accuracy(trainer: ClientTrainer, on_batch: Callable[[], None] = lambda: None) -> float:
    """The accuracy of the device's exit on its held-out images, of which there must be at least one.

    `on_batch` is called after each batch of them.
    """
    right = 0
    for batch in trainer.evaluate():
        right += int(np.sum(batch.exit_labels == batch.labels))
        on_batch()
    return right / trainer.held_out


def alone_accuracy(
    spec: RunSpec,
    cut: int,
    trainer_at: Callable[[RunSpec, int], ClientTrainer],
    state: Path,
    on_step: Callable[[int, int, int, float], None],
) -> float | None:
    """The held-out accuracy of the exit after the device has trained by itself for all rounds.

    It uses the run's seeds and settings, and the weights that the run begins with. The result is kept in the
    device's state. Training is repeated only for another run, or another number of rounds.

    Args:
        on_step: called after each step with the round, the step, the steps of the round, and the mean loss;
            and with those of the last step after each batch of the evaluation.

    Returns:
        None: no images are held out.
    """
    kept = read_record(state / BASELINE, _Baseline, "the baseline is trained again")
    if kept is not None and (kept.run, kept.rounds) == (spec.run, spec.rounds):
        return kept.accuracy
    trainer = trainer_at(standalone_spec(spec), cut)
    if not trainer.held_out:
        return None
    log.info("baseline: training alone for %d rounds, before joining", spec.rounds)
    for number in range(1, spec.rounds + 1):
        for step, _ in enumerate(trainer.round(number), start=1):
            on_step(number, step, trainer.steps, trainer.loss)
    on_batch = partial(on_step, spec.rounds, trainer.steps, trainer.steps, trainer.loss)
    found = _Baseline(spec.run, spec.rounds, cut, exit_accuracy(trainer, on_batch))
    write_record(state / BASELINE, found)
    log.info("baseline: trained alone, the exit has an accuracy of %.1f %%", 100 * found.accuracy)
    del trainer
    gc.collect()  # a small device has no room for two networks
    return found.accuracy
