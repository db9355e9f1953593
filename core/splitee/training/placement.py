# SPDX-License-Identifier: Apache-2.0
"""Settings that depend on where a network runs (CPU or GPU), and on its precision."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn

from splitee.protocol.fields import Precision


def precision_at(place: torch.device, precision: Precision) -> AbstractContextManager[object]:
    """The precision of a training step of a network; with bf16, its outputs must be converted to float32.

    A bfloat16 has 8 bits of precision. These are too few for exits, which normalise means that are nearly
    equal, for losses, and for distinguishing the two likeliest classes. Everything except stages in training
    is therefore computed outside.
    """
    return torch.autocast(place.type, torch.bfloat16) if precision == "bf16" else nullcontext()


def lay_out(network: nn.Module, precision: Precision) -> None:
    """Converts to channels last, in place, with bf16, which is much slower with channels first."""
    if precision == "bf16":
        network.to(memory_format=torch.channels_last)


def seed_at(place: torch.device, seed: int) -> None:
    """Seed the CPU's generator and, where `place` is a GPU, that GPU's.

    Unlike `torch.manual_seed`, it does not seed every kind of device that torch knows. For each that has not
    been used, that would make a traceback, and take a millisecond in every step.
    """
    torch.default_generator.manual_seed(seed)
    if place.type == "cuda":
        torch.cuda.manual_seed(seed)
