# SPDX-License-Identifier: Apache-2.0
"""A phase of a round: its memory is freed with it."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest
import torch
from fakes import FakeClock

from splitee.protocol.rounds import Participant, RoundOpen, Weights
from splitee.training.weights import WeightsAssembler
from splitee_server.rounds.phase import Phase
from splitee_server.rounds.windows import Budget, Windows


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Without the garbage collector: in a process of many objects it finds cycles late."""
    gc.disable()
    yield
    gc.enable()


def test_collected_client_networks_are_freed_with_their_phase(no_collector: None) -> None:
    opened = RoundOpen(run="r", round=1, attempt=1, phase="train", participants=1)
    assembler = WeightsAssembler({"client.weight": torch.ones(3)})
    held = weakref.ref(assembler)
    phase = Phase(
        opened,
        {"pi-1": Participant(cut=1, steps=1, base=0)},
        order="step",
        window=1,
        windows=Windows({"pi-1": 1}, {"pi-1": Budget(1, 1)}, Budget(1, 1), window=1, order="step"),
        num_classes=3,
        clock=FakeClock(),
        assemblers={"pi-1": assembler},
    )
    phase.add_weights("pi-1", Weights(run="r", round=1, attempt=1, tensors={}))
    assert not phase.is_over()
    del assembler, phase
    assert held() is None
