# SPDX-License-Identifier: Apache-2.0
"""CSE-FSL and FSL-SAGE: what clients that get no gradient train, send and average, and the alignment."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny_runs import images, in_messages, tiny_run
from torch import Tensor, nn

from splitee.networks.split import build_for
from splitee.protocol.run_spec import RunSpec
from splitee_device.data.image_sets import ImageSet
from splitee_device.data.images import DeviceData
from splitee_lab.methods import cse_fsl, fsl_sage
from splitee_lab.methods.alignment import Target, align, feature_gradients, gradient_error, with_fixed_buffers
from splitee_lab.methods.experiment import SERVER, Accuracy, Experiment, RoundResult
from splitee_lab.methods.registry import BASELINES, METHODS
from splitee_lab.methods.simulation import SimulatedDevice
from splitee_lab.methods.turns import in_turn

EQUAL = {"a": 64, "b": 64, "c": 64}
UNEQUAL = {"a": 32, "b": 112, "c": 48}  # whole batches, as the fleet weighs by trained images
CUT = 2  # of all clients, in the tiny network
FEATURES, LABEL = 4 * 8 * 3 * 3, 1  # bytes of a sample, as float32
CLIENT_MACS = 4 * 27 * 64 + 8 * 36 * 9
METHOD = pytest.mark.parametrize("method", ["cse-fsl", "fsl-sage"])


@pytest.fixture(scope="module")
def data() -> DeviceData:
    return images(192)


def spec(**settings: Any) -> RunSpec:
    return tiny_run(**{"codec": "fp32", "network": "tiny_networks:steady", **settings})


def experiment(
    run: RunSpec, data: DeviceData, samples: dict[str, int] = EQUAL, cuts: tuple[int, ...] = (CUT,) * 3
) -> Experiment:
    devices, first = {}, 0
    for (name, count), cut in zip(samples.items(), cuts, strict=True):
        own = slice(first, first + count)
        train = ImageSet(data.train.images[own], data.train.labels[own])
        devices[name] = SimulatedDevice(cut, dataclasses.replace(data, train=train))
        first += count
    return Experiment(run, devices)


def run_of(method: str, *given: Any, **settings: Any) -> list[RoundResult]:
    return list(METHODS[method](experiment(spec(**settings), *given)))


def accuracy(result: RoundResult) -> Accuracy:
    return result.accuracies[SERVER]


@pytest.mark.parametrize(
    "settings",
    [
        {"augmentation": "flip", "balanced_loss": True, "codec": "int8"},
        {"order": "device", "weighting": "uniform", "optimizer": "adamw", "learning_rate": 0.003},
        {"frozen": 1, "schedule": "constant"},
        {"frozen": CUT},
    ],
    ids=["balanced", "device", "frozen", "all-frozen"],
)
def test_cse_fsl_equals_sequential_with_equal_cuts_and_averaged_clients(
    settings: dict[str, Any], data: DeviceData
) -> None:
    fleet = run_of("sequential", data, UNEQUAL, client_averaging="same-cut", **settings)
    for mine, theirs in zip(run_of("cse-fsl", data, UNEQUAL, **settings), fleet, strict=True):
        assert {repr(one) for one in theirs.accuracies.values()} == {repr(accuracy(mine))}
        assert (mine.bytes, mine.macs) == (theirs.bytes, theirs.macs)


@METHOD
def test_trunk_and_exits_learn(method: str, data: DeviceData) -> None:
    rounds = run_of(method, data, rounds=6, learning_rate=0.05, warm_up=0.0)
    first, last = accuracy(rounds[0]), accuracy(rounds[-1])
    assert first.accuracy and last.accuracy and last.exit_accuracy and last.adaptive_accuracy
    assert last.accuracy > max(0.4, first.accuracy)  # chance is 0.1
    assert last.exit_accuracy > 0.2


@METHOD
def test_every_client_gets_the_middle_cut(method: str, data: DeviceData) -> None:
    assert run_of(method, data, EQUAL, (1, 2, 3)) == run_of(method, data)


@METHOD
def test_weighting_by_samples_changes_the_mean_of_unequal_clients_only(method: str, data: DeviceData) -> None:
    for samples, same in ((EQUAL, True), (UNEQUAL, False)):
        one, other = (
            run_of(method, data, samples, weighting=how, learning_rate=0.05) for how in ("samples", "uniform")
        )
        assert (one == other) is same


@METHOD
def test_only_every_hth_batch_is_sent(method: str, data: DeviceData, monkeypatch: pytest.MonkeyPatch) -> None:
    every = run_of(method, data)[0]
    monkeypatch.setattr(cse_fsl, "H", 2)
    half = run_of(method, data)[0]
    assert every.bytes - half.bytes in in_messages(3 * 32 * (FEATURES + LABEL), 3 * 2)
    assert half.macs == every.macs


@pytest.mark.parametrize(
    ("stages", "parameters", "macs"),
    [(0, 72 * 10 + 10, 72 * 10), (1, 72 * 16 + 16 + 16 * 10 + 10, 72 * 16 + 16 * 10)],
    ids=["exit", "hidden-layer-and-exit"],
)
def test_bytes_and_compute_of_fsl_sage_include_its_auxiliary_network(
    stages: int, parameters: int, macs: int, data: DeviceData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fsl_sage, "AUXILIARY_STAGES", stages)
    network = build_for(spec())
    weights = sum(tensor.nbytes for tensor in network.client(CUT).state_dict().values())
    up = 64 * (FEATURES + LABEL)
    rounds = run_of("fsl-sage", data, rounds=3)
    network_messages, tensors = 3 * 2, 3 * 2 * len(network.client(CUT).state_dict())
    assert rounds[1].bytes in in_messages(3 * (2 * weights + up), 3 * 4 + network_messages, tensors)
    for aligned in (rounds[0], rounds[2]):
        assert aligned.bytes - rounds[1].bytes == 3 * 4 * parameters
    assert {done.macs for done in rounds} == {3 * 64 * (3 * CLIENT_MACS + 2 * macs)}


@pytest.mark.parametrize("frozen", [1, CUT, CUT + 1])
def test_fsl_sage_does_not_send_frozen_stages(frozen: int, data: DeviceData) -> None:
    """The auxiliary, a network of its own, is trained nevertheless."""
    network = build_for(spec(frozen=frozen))
    keys = set(network.client(CUT).state_dict()) - set(network.frozen_keys)
    weights = sum(network.module.state_dict()[key].nbytes for key in keys)
    rounds = run_of("fsl-sage", data, frozen=frozen)
    sent = in_messages(3 * (2 * weights + 64 * (FEATURES + LABEL)), 3 * (4 + 2), 3 * 2 * len(keys))
    assert rounds[1].bytes in sent
    exits = [accuracy(done).exit_accuracy for done in rounds]
    assert None not in exits


def test_alignment_changes_fsl_sage_from_the_second_round_on(
    data: DeviceData, monkeypatch: pytest.MonkeyPatch
) -> None:
    aligned = run_of("fsl-sage", data)
    monkeypatch.setattr(fsl_sage, "ALIGN_EVERY", 3)
    assert run_of("fsl-sage", data, rounds=2) == aligned  # after the first, and after the fourth
    monkeypatch.setattr(fsl_sage, "RATE", 0.0)
    left = run_of("fsl-sage", data)
    assert accuracy(left[0]).accuracy == accuracy(aligned[0]).accuracy
    assert accuracy(left[1]) != accuracy(aligned[1])


@pytest.mark.parametrize("stages", [0, 1])
def test_alignment_lowers_the_gradient_error_and_keeps_statistics(
    stages: int, data: DeviceData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fsl_sage, "AUXILIARY_STAGES", stages)
    made = experiment(spec(network="tiny_networks:tiny"), data)
    trunk = made.build().trunk(1).train()
    auxiliary = fsl_sage.auxiliary_network(made, 1).train()
    buffers = {name: one.clone() for name, one in [*auxiliary.named_buffers(), *trunk.named_buffers()]}
    targets = targets_of(trunk)
    optimizer = torch.optim.Adam(auxiliary.parameters(), lr=0.01)
    before = error(auxiliary, targets)
    align(auxiliary, optimizer, targets, torch.zeros(10))
    assert error(auxiliary, targets) < 0.9 * before
    for name, buffer in [*auxiliary.named_buffers(), *trunk.named_buffers()]:
        assert torch.equal(buffer, buffers[name]), name
    assert all(one.grad is None for one in trunk.parameters())


def test_batch_without_a_finite_error_is_not_trained(data: DeviceData) -> None:
    made = experiment(spec(network="tiny_networks:tiny"), data)
    auxiliary = fsl_sage.auxiliary_network(made, 1).train()
    before = {name: one.clone() for name, one in auxiliary.named_parameters()}
    target = targets_of(made.build().trunk(1).train())[0]
    endless = dataclasses.replace(target, gradients=torch.full_like(target.gradients, torch.inf))
    align(auxiliary, torch.optim.Adam(auxiliary.parameters(), lr=0.01), [endless], torch.zeros(10))
    for name, parameter in auxiliary.named_parameters():
        assert torch.equal(parameter, before[name]), name


def test_gradient_error_of_the_trunk_itself_is_zero() -> None:
    trunk = build_for(spec()).trunk(1).train()
    assert error(trunk, targets_of(trunk)) == 0


def targets_of(trunk: nn.Module) -> list[Target]:
    generator = torch.Generator().manual_seed(1)
    batches = [
        (torch.rand(16, 4, 8, 8, generator=generator), torch.randint(10, (16,), generator=generator))
        for _ in range(4)
    ]
    torch.manual_seed(1)
    logits_of = with_fixed_buffers(trunk)
    return [
        Target(features, labels, feature_gradients(logits_of, features, labels))
        for features, labels in batches
    ]


def error(auxiliary: nn.Module, targets: list[Target]) -> float:
    none = torch.zeros(10)
    return sum(gradient_error(auxiliary, one, none, differentiable=False).item() for one in targets)


def test_gradients_of_attention_can_be_aligned() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.project = nn.Linear(8, 8)
            self.classify = nn.Linear(8, 10)

        def forward(self, tokens: Tensor) -> Tensor:
            inner = self.project(tokens).unsqueeze(1)  # (B, 1, T, C)
            logits: Tensor = self.classify(
                F.scaled_dot_product_attention(inner, inner, inner).mean(dim=(1, 2))
            )
            return logits

    torch.manual_seed(1)
    auxiliary, features, labels = Attention(), torch.rand(4, 6, 8), torch.arange(4)
    target = Target(features, labels, torch.zeros_like(features))
    gradient_error(auxiliary, target, torch.zeros(10), differentiable=True).backward()
    weight = auxiliary.project.weight
    assert weight.grad is not None
    assert weight.grad.abs().sum() > 0


def test_feature_gradients_are_those_of_the_loss_with_offsets() -> None:
    torch.manual_seed(1)
    part, features, labels = nn.Linear(3, 4), torch.rand(5, 3), torch.tensor([0, 1, 2, 3, 0])
    offsets = torch.tensor([0.0, -1.0, 2.0, 0.5])
    probabilities = F.softmax(part(features) + offsets, dim=1)
    expected = (probabilities - F.one_hot(labels, 4)) @ part.weight
    torch.testing.assert_close(feature_gradients(part, features, labels, offsets), expected)


def test_batches_come_in_turn_or_client_by_client() -> None:
    def rounds() -> list[Any]:
        return [iter("abc"), iter("A"), iter("12")]

    assert "".join(in_turn(rounds())) == "aA1b2c"
    assert "".join(in_turn(rounds(), "device")) == "abcA12"


def test_cse_fsl_and_fsl_sage_are_baselines() -> None:
    assert {"cse-fsl", "fsl-sage"} <= BASELINES.keys()
