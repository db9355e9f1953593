"""What the averages of a round become by what earlier commits have changed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from splitee_server.learning.server_momentum import ServerMomentum


def tensors(weight: float, mean: float = 0.0) -> dict[str, Tensor]:
    return {
        "fc.weight": torch.full((2,), weight),
        "bn.running_mean": torch.full((2,), mean),
        "bn.num_batches_tracked": torch.tensor(7),
    }


def test_what_a_commit_changes_goes_on_in_the_next() -> None:
    momentum = ServerMomentum(0.5)
    committed: dict[str, Tensor] = {}
    found = []
    for mean in (1.0, 3.0, 3.0, 3.0):
        means = tensors(mean)
        committed = means | momentum.carry_on(means, committed)
        found.append(committed["fc.weight"][0].item())
    # first: 1. then v = 2: 3. then v = 0 + 1: 4. then v = -1 + 0.5: 3.5
    assert found == [1.0, 3.0, 4.0, 3.5]


def test_statistics_are_taken_as_they_are_averaged() -> None:
    carried = ServerMomentum(0.5).carry_on(tensors(2.0, mean=3.0), tensors(1.0, mean=1.0))
    assert carried.keys() == {"fc.weight"}


def test_without_momentum_nothing_is_kept() -> None:
    momentum = ServerMomentum(0.0)
    assert momentum.carry_on(tensors(2.0), tensors(1.0)) == {}
    assert momentum.state() == {}


@pytest.mark.parametrize("resumed", [False, True])
def test_a_resumed_run_goes_on_with_it(resumed: bool) -> None:
    momentum = ServerMomentum(0.5)
    momentum.carry_on(tensors(2.0), tensors(1.0))
    if resumed:
        state = momentum.state()
        momentum = ServerMomentum(0.5)
        momentum.load(state)
    assert momentum.carry_on(tensors(2.0), tensors(2.0))["fc.weight"].tolist() == [2.5, 2.5]
