# SPDX-License-Identifier: Apache-2.0
"""The learning rate over a run, the optimizers, and the balanced loss."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from splitee.protocol.run_spec import RunSpec
from splitee.protocol.topics import PROTOCOL
from splitee.training.learning_rate import learning_rate
from splitee.training.objective import class_offsets
from splitee.training.optimizer import make_optimizer
from splitee.training.state import pack_state, unpack_state


def spec(**settings: Any) -> RunSpec:
    known = {"protocol": PROTOCOL, "run": "r", "network": "resnet18", "num_classes": 10, "rounds": 10}
    return RunSpec(**{"learning_rate": 0.5, "warm_up": 0.1, **known, **settings})


def rates(run: RunSpec, highest: float | None = None) -> list[float]:
    return [
        learning_rate(run, number, step, 10, highest=highest) for number in range(1, 11) for step in range(10)
    ]


def test_learning_rate_rises_and_then_follows_half_a_cosine() -> None:
    found = rates(spec())
    peak = found.index(max(found))
    assert peak == pytest.approx(10, abs=1)
    assert found[:peak] == sorted(found[:peak])
    assert found[peak:] == sorted(found[peak:], reverse=True)
    assert found[0] == pytest.approx(0.05)
    assert found[50] == pytest.approx(0.5 * (1 + 0.02) / 2)
    assert found[-1] == pytest.approx(0.01, rel=0.1)


def test_constant_learning_rate_stays_after_its_warm_up() -> None:
    found = rates(spec(schedule="constant"))
    assert found[0] == pytest.approx(0.05)
    assert found[9:] == pytest.approx([0.5] * 91)


def test_learning_rate_without_warm_up_begins_at_the_highest() -> None:
    assert rates(spec(warm_up=0.0))[0] == 0.5


def test_learning_rate_schedule_scales_with_its_highest_rate() -> None:
    assert rates(spec(), highest=0.25) == pytest.approx([rate / 2 for rate in rates(spec())])


OPTIMIZERS: list[dict[str, Any]] = [{}, {"momentum": 0.0}, {"optimizer": "adamw"}]


@pytest.mark.parametrize("settings", [*OPTIMIZERS, *({**one, "fused": True} for one in OPTIMIZERS)])
def test_optimizer_continues_from_its_stored_state(settings: dict[str, Any]) -> None:
    run = spec(**settings)
    one, other = nn.Linear(3, 2), nn.Linear(3, 2)
    optimizer = make_optimizer(one.parameters(), run)
    for _ in range(3):
        step(one, optimizer)
    other.load_state_dict(one.state_dict())
    restored = make_optimizer(other.parameters(), run)
    restored.load_state_dict(unpack_state(pack_state(optimizer.state_dict())))
    step(one, optimizer)
    step(other, restored)
    assert torch.equal(one.weight, other.weight)


@pytest.mark.parametrize("settings", OPTIMIZERS)
def test_fused_step_matches_a_plain_one_and_skips_layers_without_gradient(
    settings: dict[str, Any],
) -> None:
    trained = []
    for fused in (True, False):
        torch.manual_seed(1)
        reached, unreached = nn.Linear(3, 2), nn.Linear(3, 2)
        before = unreached.weight.detach().clone()
        optimizer = make_optimizer(
            [*reached.parameters(), *unreached.parameters()], spec(fused=fused, **settings)
        )
        for _ in range(3):
            step(reached, optimizer)
        assert torch.equal(unreached.weight, before)
        assert not optimizer.state[unreached.weight]
        optimizer.state.clear()  # as on a device that continues from an average
        step(reached, optimizer)
        trained.append(reached.state_dict())
    torch.testing.assert_close(trained[0], trained[1])


def test_balanced_loss_is_minimal_at_equal_logits() -> None:
    """Only the mix of classes could be learnt here; a balanced loss leaves the logits unchanged."""
    labels = np.repeat([0, 1, 2], [70, 20, 10])
    run = spec(num_classes=4, balanced_loss=True)
    offsets = class_offsets(run, labels)
    logits = torch.zeros(100, 4, requires_grad=True)
    F.cross_entropy(logits + offsets, torch.from_numpy(labels)).backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad.sum(0), torch.zeros(4), atol=2e-3, rtol=0)
    assert offsets.isfinite().all()
    assert torch.equal(class_offsets(spec(num_classes=4), labels), torch.zeros(4))


def step(layer: nn.Linear, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    layer(torch.ones(1, 3)).square().sum().backward()
    optimizer.step()
