# SPDX-License-Identifier: Apache-2.0
"""A fleet that computes in bfloat16: all that is kept is float32, and the same seed gives the same bits."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from msgspec.structs import replace
from tiny_runs import images, tiny_run
from torch.utils._python_dispatch import TorchDispatchMode

from splitee.networks.split import build_for
from splitee.training.state import pack_state, unpack_state
from splitee_device.training.trainer import ClientTrainer
from splitee_lab.methods.experiment import Experiment
from splitee_lab.methods.registry import BASELINES, METHODS
from splitee_lab.methods.simulation import SimulatedDevice, Simulation
from splitee_server.learning.fleet_model import FleetModel

CUTS = {"a": 1, "b": 2, "c": 3}
WHOLE: dict[str, Any] = {
    "precision": "bf16",
    "exits": "fleet",
    "exit_cuts": (1, 2, 3),
    "settled": True,
    "deep_supervision": 0.3,
    "statistics_batches": 1,
    "soft_labels": 1.0,
}


@functools.cache
def devices() -> dict[str, SimulatedDevice]:
    return {name: SimulatedDevice(cut, images(64)) for name, cut in CUTS.items()}


@pytest.mark.parametrize("strategy", ["sequential", "averaging"])
def test_seed_decides_all_bits_in_bfloat16_and_they_differ_from_float32(strategy: str) -> None:
    def digest(**settings: Any) -> str:
        simulation = Simulation(tiny_run(strategy=strategy, **settings), devices())
        losses = [loss for done in simulation.rounds() for loss in done.trunk_loss.values()]
        assert all(0 < loss < 5 for loss in losses)
        return simulation.digest()

    assert digest(**WHOLE) == digest(**WHOLE) != digest(**{**WHOLE, "precision": "fp32"})


@pytest.mark.parametrize("strategy", ["sequential", "averaging"])
def test_trunk_is_kept_in_float32_and_continues_from_its_commit(strategy: str) -> None:
    spec = tiny_run(strategy=strategy, precision="bf16")
    models = [FleetModel(spec, build_for(spec)) for _ in range(2)]
    features = torch.rand(8, *models[0].feature_shape(2), generator=torch.Generator().manual_seed(1))
    labels = torch.arange(8) % 10

    def train(model: FleetModel, number: int) -> float:
        return model.train("b", features, labels, round_number=number, step=0, steps=1)

    models[0].join("b", 2, 64)
    train(models[0], 1)
    models[0].commit(1, {})
    models[1].load(unpack_state(pack_state(models[0].state())))
    models[1].join("b", 2, 64)
    assert train(models[0], 2) == train(models[1], 2)
    one, other = (model.trunk_weights() for model in models)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert {tensor.dtype for tensor in one.values()} <= {torch.float32, torch.int64}
    assert models[0].logits("b", features).dtype == torch.float32


def test_features_weights_and_statistics_of_a_device_are_float32() -> None:
    spec = tiny_run(**WHOLE)
    trainer = ClientTrainer(build_for(spec), 3, spec, "a", images(64))
    sent = [*trainer.round(1), *trainer.statistics(1, 1), *trainer.evaluate()]
    assert {str(batch.features.dtype) for batch in sent} == {"float32"}
    assert {tensor.dtype for tensor in trainer.weights().values()} == {torch.float32, torch.int64}
    assert {tensor.dtype for tensor in trainer.fresh_statistics().values()} == {torch.float32}
    plain = ClientTrainer(build_for(spec), 3, replace(spec, precision="fp32"), "a", images(64))
    first, exact = sent[0].features, next(plain.round(1)).features
    assert 0 < abs(first - exact).max() < 0.1 * abs(exact).max()


class Gradients(TorchDispatchMode):
    """By the shape of a convolution's weights, in which precisions their gradients were computed."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[torch.Size, set[torch.dtype]] = {}

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        if function is torch.ops.aten.convolution_backward.default:
            gradient, _, weights, *_, (_, is_of_weights, _) = arguments
            if is_of_weights:
                self.found.setdefault(weights.shape, set()).add(gradient.dtype)
        return function(*arguments, **(keywords or {}))


@pytest.mark.parametrize("method", sorted(BASELINES))
def test_every_baseline_trains_its_stages_in_bfloat16(method: str) -> None:
    """The first stage is the client's; the second, of a split network, the trunk's."""
    own = {name: SimulatedDevice(1, device.data) for name, device in devices().items()}
    with Gradients() as gradients:
        (done,) = METHODS[method](Experiment(tiny_run(precision="bf16", rounds=1), own))
    assert done.accuracies
    first, second = torch.Size((4, 3, 3, 3)), torch.Size((8, 4, 3, 3))
    expected = {first: {torch.bfloat16}}
    if method != "alone-exit":
        expected[second] = {torch.bfloat16}
    if method == "fsl-sage":
        expected[second].add(torch.float32)  # of its auxiliary networks
    assert gradients.found == expected
