# SPDX-License-Identifier: Apache-2.0
"""A joint step is that of one large batch, with the same bits whichever rank sums which devices."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from splitee.networks.split import build_network
from splitee.protocol.run_spec import RunSpec
from splitee.training.batchnorm_statistics import is_statistic
from splitee.training.placement import seed_at
from splitee.training.seeds import seed_for
from splitee.training.state import COUNTER, pack_state, weights_digest
from splitee.training.weights import client_model
from splitee_server.learning.fleet_model import Contribution, FleetModel
from splitee_server.learning.lanes import LANES, in_order
from splitee_server.learning.strategies.base import Untrainable
from splitee_server.ranks.assignment import LaneAssignment
from splitee_server.ranks.state_transfer import pack, unpack

CUTS = {"a": 1, "b": 2, "c": 3, "d": 2, "e": 1}
STEPS = {"a": 3, "b": 3, "c": 3, "d": 1, "e": 2}
BATCH, RATE = 8, 0.1
NETWORK = build_network("tiny_networks:tiny", num_classes=10)


def spec(**settings: Any) -> RunSpec:
    plain: dict[str, Any] = {
        "schedule": "constant",
        "warm_up": 0,
        "momentum": 0,
        "weight_decay": 0,
        "learning_rate": RATE,
        "trunk_learning_rate": RATE,
    }
    return RunSpec(
        protocol=1,
        run="r",
        network="tiny_networks:tiny",
        num_classes=10,
        rounds=5,
        strategy="data-parallel",
        batch_size=BATCH,
        **(plain | settings),
    )


def make_model(run: RunSpec, devices: Iterable[str] = CUTS) -> FleetModel:
    model = FleetModel(run, copy.deepcopy(NETWORK))
    for device in devices:
        model.join(device, CUTS[device], STEPS[device] * BATCH)
    return model


def batch(model: FleetModel, device: str, number: int, step: int) -> tuple[Tensor, Tensor]:
    """The last device has smaller batches, as means are over samples."""
    count = BATCH // 2 if device == "e" else BATCH
    generator = torch.Generator().manual_seed(1000 * number + 10 * step + ord(device))
    shape = count, *model.feature_shape(CUTS[device])
    return torch.randn(shape, generator=generator), torch.randint(0, 10, (count,), generator=generator)


def train(model: FleetModel, device: str, number: int, step: int) -> None:
    features, labels = batch(model, device, number, step)
    model.train(device, features, labels, round_number=number, step=step, steps=STEPS[device])


def sent(number: int, run: RunSpec) -> dict[str, Contribution]:
    generator = torch.Generator().manual_seed(number)
    return {
        device: Contribution(
            {
                name: (tensor + torch.rand(tensor.shape, generator=generator)).to(tensor.dtype)
                for name, tensor in client_model(NETWORK, cut, run).state_dict().items()
            }
        )
        for device, cut in CUTS.items()
    }


def digest(model: FleetModel) -> str:
    state = model.state()
    momentum = state["strategy"]["optimizer"]["state"].items()
    flat = {f"{at}/{name}": one for at, of in momentum for name, one in of.items() if isinstance(one, Tensor)}
    labels = {device: labels["probabilities"] for device, labels in state["soft_labels"].items()}
    return weights_digest({**model.trunk_weights(), **flat, **labels}) + str(state["left_out"])


def test_step_takes_the_mean_gradient_of_the_samples_that_pass_each_stage() -> None:
    model, model_seed = make_model(spec()), spec().seed
    expected = dict(NETWORK.trunk(1).named_parameters())
    gradients: dict[str, Tensor] = {}
    statistics: dict[str, Tensor] = {}
    counts: dict[str, int] = {}
    for device in in_order(CUTS):
        features, labels = batch(model, device, 1, 0)
        trunk = copy.deepcopy(NETWORK).trunk(CUTS[device]).train()
        seed_at(features.device, seed_for(model_seed, "trunk", device, 1, 0))  # seed of its dropout
        F.cross_entropy(trunk(features), labels).backward()
        for name, parameter in trunk.named_parameters():
            assert parameter.grad is not None
            gradients[name] = gradients.get(name, torch.tensor(0.0)) + len(labels) * parameter.grad
            counts[name] = counts.get(name, 0) + len(labels)
        for name, buffer in trunk.named_buffers():
            statistics[name] = statistics.get(name, torch.tensor(0.0)) + len(labels) * buffer
            counts[name] = counts.get(name, 0) + len(labels)
        train(model, device, 1, 0)
    assert weights_digest(model.trunk_weights()) == weights_digest(NETWORK.trunk(1).state_dict())  # no step
    train(model, "a", 1, 1)
    found = model.trunk_weights()
    assert any(is_statistic(name) for name in statistics)
    for name, gradient in gradients.items():
        stepped = expected[name] - RATE * gradient / counts[name]
        torch.testing.assert_close(found[name], stepped, atol=1e-6, rtol=1e-5)
    for name, total in statistics.items():
        torch.testing.assert_close(found[name].float(), total / counts[name], atol=1e-6, rtol=1e-5)
        assert not name.endswith(COUNTER) or found[name] == 1


def digest_of_ranks(run: RunSpec, count: int, rounds: int = 2) -> str:
    """Digest of the commit of `count` ranks, each of which trains only the batches of its own devices."""
    model = make_model(run)
    for number in range(1, rounds + 1):
        dealing = LaneAssignment(count)
        dealt = dealing.assign_ranks(CUTS)
        ranks = [model, *(make_model(run, ()) for _ in range(1, count))]
        own = [[device for device in in_order(CUTS) if dealt[device] == rank] for rank in range(count)]
        for rank, devices in zip(ranks[1:], own[1:], strict=True):
            rank.load_phase_state(unpack(pack(model.phase_state(devices, averages=True))))
            for device in devices:
                rank.load_training_state(device, unpack(pack(model.training_state(device))))
        for step in range(max(STEPS.values())):
            for rank, devices in zip(ranks, own, strict=True):
                for device in devices:
                    if step < STEPS[device]:
                        train(rank, device, number, step)
            if count > 1:
                join_step(ranks, dealing)
        for rank, devices in zip(ranks[1:], own[1:], strict=True):
            for device in devices:
                model.load_round_result(device, unpack(pack(rank.round_result(device))))
        model.commit(number, sent(number, run))
    return digest(model)


def join_step(ranks: Sequence[FleetModel], dealing: LaneAssignment) -> None:
    first, *others = ranks
    parts = [other.part_of_step(dealing.lanes(rank)) for rank, other in enumerate(others, start=1)]
    changed = first.end_step(*[unpack(pack_state(part)) for part in parts], lanes=dealing.lanes(0))
    for other in others:
        other.follow_step(unpack(pack_state(changed)))
    first.move_to(unpack(pack_state(changed)))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"momentum": 0.9, "schedule": "cosine", "warm_up": 0.3, "optimizer": "adamw", "fused": True},
        {"balanced_loss": True, "soft_labels": 0.5, "client_averaging": "layerwise", "freeze": 1},
        {"largest_loss": 1.01, "clip_gradient": 0.1, "average": "median", "client_averaging": "layerwise"},
        {"exits": "fleet", "exit_cuts": (1, 2, 3), "settled": True, "deep_supervision": 0.3},
    ],
    ids=["plain", "scheduled", "with-memory", "robust", "supervised"],
)
def test_committed_state_is_the_same_with_any_number_of_ranks(settings: dict[str, Any]) -> None:
    run = spec(**settings)
    alone = digest_of_ranks(run, 1)
    assert [digest_of_ranks(run, count) for count in (2, 3, 4)] == [alone] * 3


def test_clipped_gradient_bounds_the_effect_of_a_device_with_huge_features() -> None:
    """The device moves weights by at most the share of its clipped gradient."""
    weights = []
    for scale in (1.0, 1e4):
        model = make_model(spec(clip_gradient=0.01))
        for device in in_order(CUTS):
            features, labels = batch(model, device, 1, 0)
            features = features * scale if device == "b" else features
            model.train(device, features, labels, round_number=1, step=0, steps=3)
        model.end_step(lanes=range(LANES))
        weights.append(model.trunk_weights())
    one, other = weights
    moved = max(
        float((one[name] - other[name]).detach().abs().max()) for name in one if not is_statistic(name)
    )
    assert 0 < moved <= 2 * RATE * 0.01


def test_untrainable_batch_does_not_change_the_step_of_the_other_devices() -> None:
    found = []
    for has_spoiled in (False, True):
        model = make_model(spec())
        for device in in_order(CUTS):
            if device != "b":
                train(model, device, 1, 0)
            elif has_spoiled:
                features, labels = batch(model, device, 1, 0)
                with pytest.raises(Untrainable):
                    model.train(device, features * float("nan"), labels, round_number=1, step=0, steps=3)
        model.end_step(lanes=range(LANES))
        found.append(weights_digest(model.trunk_weights()))
    assert found[0] == found[1]


def test_step_is_taken_with_the_batches_of_dropped_devices_unless_the_round_is_abandoned() -> None:
    model = make_model(spec())
    train(model, "c", 1, 0)
    model.forget("c")
    assert model.end_step(lanes=range(LANES))
    train(model, "c", 1, 0)
    model.forget("c")
    model.abandon_round()
    assert model.end_step(lanes=range(LANES)) == {}
