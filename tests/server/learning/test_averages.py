# SPDX-License-Identifier: Apache-2.0
"""Cross-layer aggregation against a plain NumPy mean over the holders of each stage."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from splitee.networks.split import SplitNetwork, build_network
from splitee.protocol.run_spec import RunSpec
from splitee.training.state import pack_state, unpack_state
from splitee_server.learning.averages import average_by_name, weigh
from splitee_server.learning.strategies.registry import make_strategy

CUTS = {"a": 1, "b": 2, "c": 3, "d": 1}
SAMPLES = {"a": 100, "b": 50, "c": 10, "d": 7}


def spec(strategy: str, *, fused: bool = False) -> RunSpec:
    return RunSpec(
        protocol=1,
        run="r",
        network="tiny_networks:tiny",
        num_classes=5,
        rounds=2,
        strategy=strategy,
        batch_size=8,
        fused=fused,
    )


def network() -> SplitNetwork:
    return build_network("tiny_networks:tiny", num_classes=5, seed=3)


def train_a_little(
    strategy: str, steps: int = 3, *, fused: bool = False
) -> tuple[dict[str, nn.Module], object]:
    torch.manual_seed(0)
    split = network()
    made = make_strategy(split, spec(strategy, fused=fused))
    for device, cut in CUTS.items():
        made.join(device, cut)
        shape = split.stages[cut - 1].feature_shape
        for step in range(steps):
            features, labels = torch.randn(8, *shape), torch.randint(0, 5, (8,))
            made.train(device, features, labels, round_number=1, step=step, steps=steps)
    return {device: made.trunk(device) for device in CUTS}, made


def copies(trunks: dict[str, nn.Module]) -> dict[str, dict[str, Tensor]]:
    return {
        device: {name: tensor.clone() for name, tensor in trunk.state_dict().items()}
        for device, trunk in trunks.items()
    }


def test_each_stage_becomes_the_mean_of_its_holders_with_batchnorm() -> None:
    trunks, strategy = train_a_little("averaging")
    before = copies(trunks)
    strategy.aggregate(SAMPLES)  # type: ignore[attr-defined]
    after = {device: strategy.tensors(device) for device in CUTS}  # type: ignore[attr-defined]
    names = {name for tensors in before.values() for name in tensors}
    assert any(name.endswith("running_var") for name in names)
    for name in names:
        holders = [device for device in CUTS if name in before[device]]
        if name.endswith("num_batches_tracked"):
            for device in holders:
                assert torch.equal(after[device][name], before[device][name])
            continue
        expected = np.average(
            [before[device][name].double().numpy() for device in holders],
            axis=0,
            weights=[SAMPLES[device] for device in holders],
        )
        for device in holders:
            np.testing.assert_allclose(after[device][name].numpy(), expected, rtol=1e-6, atol=1e-7)


def test_stage_of_uncounted_holders_only_returns_to_its_initial_weights() -> None:
    """Stage 2 is only in the trunks of devices cut at 1, whose training does not count."""
    _, strategy = train_a_little("averaging")
    strategy.aggregate({"b": 1, "c": 1})  # type: ignore[attr-defined]
    begun = network().trunk(1).state_dict()
    for name, tensor in strategy.tensors("a").items():  # type: ignore[attr-defined]
        if name.startswith("second."):
            assert torch.equal(tensor, begun[name])


def test_late_joiner_starts_from_the_averages() -> None:
    _, strategy = train_a_little("averaging")
    strategy.aggregate(SAMPLES)  # type: ignore[attr-defined]
    strategy.join("late", 1)  # type: ignore[attr-defined]
    late = strategy.trunk("late").state_dict()  # type: ignore[attr-defined]
    for name, tensor in strategy.tensors("a").items():  # type: ignore[attr-defined]
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(late[name], tensor)


def test_sequential_trunks_share_their_tensors() -> None:
    trunks, _ = train_a_little("sequential")
    shared = trunks["a"].state_dict()
    for trunk in trunks.values():
        for name, tensor in trunk.state_dict().items():
            assert tensor.data_ptr() == shared[name].data_ptr()


def test_mean_is_summed_in_float64() -> None:
    values = {"pi-1": 2.0**24, "pi-2": 1.0, "pi-3": 1.0}
    holders = {name: {"weight": torch.full((2,), value)} for name, value in values.items()}
    mean = average_by_name(holders, dict.fromkeys(values, 1))["weight"]
    assert mean.dtype == torch.float32
    assert mean.tolist() == [(2**24 + 2) / 3] * 2  # a sum in float32 would lose both ones


def test_single_holder_keeps_its_weights_exactly() -> None:
    tensors = {"x": torch.randn(5)}
    assert torch.equal(average_by_name({"a": tensors}, {"a": 3.0})["x"], tensors["x"])


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("kind", ["sequential", "averaging"])
def test_restored_strategy_trains_as_if_it_had_not_stopped(kind: str, *, fused: bool) -> None:
    _, strategy = train_a_little(kind, fused=fused)
    strategy.aggregate(SAMPLES)  # type: ignore[attr-defined]
    restored = make_strategy(network(), spec(kind, fused=fused))
    restored.load(unpack_state(pack_state(strategy.state())))  # type: ignore[attr-defined]
    shape = network().stages[CUTS["b"] - 1].feature_shape
    features, labels = torch.randn(8, *shape), torch.randint(0, 5, (8,))
    for one in (strategy, restored):
        one.train("b", features, labels, round_number=2, step=0, steps=1)  # type: ignore[attr-defined]
    ours, theirs = strategy.weights(), restored.weights()  # type: ignore[attr-defined]
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_devices_weigh_by_samples_or_equally() -> None:
    assert weigh(SAMPLES, "samples") == SAMPLES
    assert weigh(SAMPLES, "uniform") == dict.fromkeys(SAMPLES, 1)


def test_trunks_are_averaged_after_every_second_batch_within_a_round() -> None:
    """Two devices have the same cut: averaging shows in the trunk of one while the other trains."""
    run = msgspec.structs.replace(spec("averaging"), aggregation_every=2)
    made = make_strategy(network(), run)
    assert made.order == "step"
    shape = network().stages[0].feature_shape
    alike = []
    for device in ("a", "d"):
        made.join(device, 1)
    torch.manual_seed(0)
    for step in range(5):
        for device in ("a", "d"):
            features, labels = torch.randn(8, *shape), torch.randint(0, 5, (8,))
            if device == "a":
                before = copies({"d": made.trunk("d")})["d"]
            made.train(device, features, labels, round_number=1, step=step, steps=5)
            if device == "a":
                after = copies({"d": made.trunk("d")})["d"]
                alike.append(all(torch.equal(before[name], after[name]) for name in before))
    assert alike == [True, True, False, True, False]  # False: averaged, as it changes while another trains


def test_averaging_after_every_batch_equals_rounds_of_one_batch() -> None:
    shape = network().stages[0].feature_shape
    torch.manual_seed(0)
    batches = [(torch.randn(8, *shape), torch.randint(0, 5, (8,))) for _ in range(6)]
    often = make_strategy(network(), msgspec.structs.replace(spec("averaging"), aggregation_every=1))
    by_round = make_strategy(network(), spec("averaging"))
    for made in (often, by_round):
        made.join("a", 1)
        made.join("d", 1)
        for index, (features, labels) in enumerate(batches):
            device, step = "ad"[index % 2], index // 2
            torch.manual_seed(index)
            made.train(device, features, labels, round_number=1, step=step, steps=3)
            if made is by_round and device == "d":
                made.aggregate({"a": 8, "d": 8})
    often.aggregate({"a": 8, "d": 8})
    ours, theirs = often.weights(), by_round.weights()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
