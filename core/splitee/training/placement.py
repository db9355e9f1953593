# SPDX-License-Identifier: Apache-2.0
"""Settings that depend on where a network runs (CPU or GPU), and on its precision."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn

from splitee.protocol.fields import Precision


def precision_at(place: torch.device, precision: Precision) -> AbstractContextManager[object]:
    """What a training step of a network computes in; with bf16, its outputs are to be made float32 then.

    A bfloat16 has 8 bits of precision, too few for exits, which normalise means that are nearly equal, for
    losses, and to tell the likeliest class from the next: all but stages in training is computed outside.
    """
    return torch.autocast(place.type, torch.bfloat16) if precision == "bf16" else nullcontext()


def lay_out(network: nn.Module, precision: Precision) -> None:
    """Channels last, in place, where bfloat16 is much slower with channels first."""
    if precision == "bf16":
        network.to(memory_format=torch.channels_last)


def seed_at(place: torch.device, seed: int) -> None:
    """Seed the CPU's generator and, where `place` is a GPU, that GPU's.

    As `torch.manual_seed`, which also asks every kind of device that torch knows: with a traceback each,
    as long as it has not been used, a millisecond in every step.
    """
    torch.default_generator.manual_seed(seed)
    if place.type == "cuda":
        torch.cuda.manual_seed(seed)
