# SPDX-License-Identifier: Apache-2.0
"""The learning rate's schedule: warm-up, then a cosine over the run, or constant."""

from __future__ import annotations

import math

import torch

from splitee.protocol.run_spec import RunSpec

FINAL_RATE = 0.02  # of the highest learning rate, at the end of the cosine


FIRST_RATE = 0.1  # of the learning rate, in the first batch of the warm-up


def learning_rate(
    spec: RunSpec, round_number: int, step: int, steps: int, *, highest: float | None = None
) -> float:
    """Linear warm-up, then a half cosine (Loshchilov & Hutter 2017, arXiv 1608.03983), or constant.

    Args:
        round_number: from 1.
        step: from 0, of `steps` in this round.
        highest: the highest rate; None: the run's learning rate.
    """
    progress = (round_number - 1 + step / max(steps, 1)) / spec.rounds
    rate = spec.learning_rate if highest is None else highest
    if progress < spec.warm_up:
        rate *= min(1.0, FIRST_RATE + progress / spec.warm_up)
    if spec.schedule == "constant":
        return rate
    cosine = (1 + math.cos(math.pi * min(progress, 1.0))) / 2
    return rate * (FINAL_RATE + (1 - FINAL_RATE) * cosine)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
