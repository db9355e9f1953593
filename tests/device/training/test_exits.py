# SPDX-License-Identifier: Apache-2.0
"""A device trains the exits of shallower devices beside its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from msgspec.structs import replace

from splitee.networks.split import build_for
from splitee.protocol.run_spec import RunSpec
from splitee.training.state import pack_state, unpack_state
from splitee.training.weights import EXITS
from splitee_device.data.images import DeviceData, open_data
from splitee_device.training.exits import exits_loss
from splitee_device.training.trainer import ClientTrainer

CUT = 3
SPEC = RunSpec(
    protocol=1, run="r", network="tiny_networks:tiny", num_classes=10, rounds=2, seed=1, batch_size=16
)


@pytest.fixture(scope="module")
def data() -> DeviceData:
    return open_data("builtin:fashion-mnist", input_shape=(3, 32, 32), limit=64)


def trainer(data: DeviceData, **settings: Any) -> ClientTrainer:
    spec = replace(SPEC, exits="fleet", **settings)
    network = build_for(spec)
    return ClientTrainer(network, CUT, spec, "pi-1", data)


def test_other_exits_learn_from_the_best_exit() -> None:
    generator = torch.Generator().manual_seed(1)
    labels = torch.tensor([0, 1, 2, 1])
    worse, own = (torch.randn(4, 3, generator=generator, requires_grad=True) for _ in range(2))
    best = torch.eye(3)[labels].mul(5).requires_grad_()
    offsets = torch.tensor([0.1, 0.0, -0.1])
    loss, on_own = exits_loss([worse, best, own], labels, offsets)
    each = [F.cross_entropy(one + offsets, labels) for one in (worse, best, own)]
    divergences = [
        F.kl_div(F.log_softmax(one, 1), F.softmax(best, 1), reduction="batchmean") for one in (worse, own)
    ]
    torch.testing.assert_close(loss, sum(each) + sum(divergences))
    torch.testing.assert_close(on_own, each[2])
    loss.backward()
    alone = torch.autograd.grad(F.cross_entropy(best + offsets, labels), best)[0]
    torch.testing.assert_close(best.grad, alone)  # the best exit learns from the labels only


def test_single_exit_learns_from_the_labels_alone() -> None:
    logits, labels = torch.randn(4, 3), torch.tensor([0, 1, 2, 1])
    loss, own = exits_loss([logits], labels, torch.zeros(3))
    assert loss is own
    torch.testing.assert_close(loss, F.cross_entropy(logits, labels))


def test_shallower_exits_are_trained_shared_and_resumed(data: DeviceData) -> None:
    one = trainer(data, exit_cuts=(1, 2, 3, 9))
    before = {name: tensor.clone() for name, tensor in one.weights().items()}
    batches = list(one.round(1))
    assert [batch.features.shape for batch in batches] == [(16, 16)] * 4
    shallower = {name.split(".")[1] for name in one.trained_weights() if name.startswith(EXITS)}
    assert shallower == {"1", "2"}
    moved = {name for name, tensor in one.weights().items() if not torch.equal(tensor, before[name])}
    assert moved == set(before)
    again = trainer(data, exit_cuts=(1, 2, 3, 9))
    for _ in again.round(1):
        pass
    assert again.digest() == one.digest()
    resumed = trainer(data, exit_cuts=(1, 2, 3, 9))
    resumed.load(unpack_state(pack_state(one.state())))
    for of in (one, resumed):
        for _ in of.round(2):
            pass
    assert resumed.digest() == one.digest()


def test_exit_cuts_have_no_effect_without_shallower_devices(data: DeviceData) -> None:
    digests = set()
    for cuts in ((), (3,), (3, 9)):
        one = trainer(data, exit_cuts=cuts)
        for _ in one.round(1):
            pass
        digests.add(one.digest())
    assert len(digests) == 1


@pytest.mark.parametrize(("frozen", "shallower"), [(0, {"1", "2"}), (1, {"2"}), (2, set()), (3, set())])
def test_frozen_stages_have_no_shallower_exits(data: DeviceData, frozen: int, shallower: set[str]) -> None:
    one = trainer(data, exit_cuts=(1, 2, 3), frozen=frozen)
    assert {name.split(".")[1] for name in one.weights() if name.startswith(EXITS)} == shallower
    assert len(list(one.round(1))) == 4
