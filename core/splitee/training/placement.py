# SPDX-License-Identifier: Apache-2.0
"""What depends on where a network computes: on the CPU or on a GPU."""

from __future__ import annotations

import torch


def precision_at(place: torch.device) -> torch.autocast:
    """Mixed precision on a GPU; a CPU computes in float32, so that its results stay the same everywhere."""
    return torch.autocast(place.type, torch.bfloat16, enabled=place.type == "cuda")


def seed_at(place: torch.device, seed: int) -> None:
    """Seed the CPU's generator and, where `place` is a GPU, that GPU's.

    As `torch.manual_seed`, which also asks every kind of device that torch knows: with a traceback each,
    as long as it has not been used, a millisecond in every step.
    """
    torch.default_generator.manual_seed(seed)
    if place.type == "cuda":
        torch.cuda.manual_seed(seed)
