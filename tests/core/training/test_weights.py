# SPDX-License-Identifier: Apache-2.0
"""Client networks as messages: exact to the bit, and only tensors of the cut."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from splitee.errors import ConfigError, Diverged, MalformedMessage
from splitee.networks.split import build_for
from splitee.protocol.codecs import EncodedTensor
from splitee.protocol.rounds import Weights
from splitee.protocol.run_spec import RunSpec
from splitee.training.state import weights_digest
from splitee.training.weights import (
    MESSAGE_BYTES,
    WeightsAssembler,
    client_model,
    group_by_message,
    pack_weights,
    select,
)

SPEC = RunSpec(protocol=1, run="r", network="tiny_networks:tiny", num_classes=10, rounds=1)


def weights(cut: int = 2) -> dict[str, Tensor]:
    """A client network with its exit; its BatchNorm has counted some batches."""
    tensors = client_model(build_for(SPEC), cut, SPEC).state_dict()
    for name, tensor in tensors.items():
        if name.endswith("num_batches_tracked"):
            tensor.fill_(1_000_003)
    return tensors


def messages(tensors: dict[str, Tensor]) -> list[Weights]:
    return [Weights.decode(payload) for payload in pack_weights("r", 3, 7, tensors)]


def test_weights_arrive_as_sent() -> None:
    sent = weights()
    assembler = WeightsAssembler(weights())
    for message in messages(sent):
        assert (message.run, message.round, message.attempt) == ("r", 3, 7)
        assembler.add(message)
    assert assembler.missing == []
    assembler.check(weights_digest(sent))
    for name, tensor in sent.items():
        assert torch.equal(assembler.tensors[name], tensor)
        assert assembler.tensors[name].dtype == tensor.dtype


def test_many_tensors_are_split_into_messages_of_bounded_size() -> None:
    sizes = {f"w{index:02d}": MESSAGE_BYTES // 3 for index in range(10)} | {"large": 2 * MESSAGE_BYTES}
    found = list(group_by_message(sizes))
    assert [name for names in found for name in names] == sorted(sizes)
    assert all(len(names) == 1 or sum(sizes[name] for name in names) <= MESSAGE_BYTES for names in found)
    assert len(found) == 5


def test_tensor_too_large_for_a_message_is_refused() -> None:
    with pytest.raises(ConfigError, match="classifier takes 392 MiB, more than a message may"):
        list(group_by_message({"classifier": 4 * 25_088 * 4096}))


@pytest.mark.parametrize(
    ("name", "shape", "said"),
    [
        ("client.first.0.bias", [5], r"client\.first\.0\.bias has shape \(5,\), expected \(4,\)"),
        ("client.hidden.1.weight", [16, 72], "'client.hidden.1.weight' is not in this device's network"),
    ],
)
def test_tensor_of_another_network_is_refused(name: str, shape: list[int], said: str) -> None:
    assembler = WeightsAssembler(weights())
    data = bytes(4 * torch.Size(shape).numel())
    with pytest.raises(MalformedMessage, match=said):
        assembler.add(Weights(run="r", round=3, tensors={name: EncodedTensor("fp32", shape, data)}))
    assert assembler.tensors == {}


def test_message_with_one_wrong_tensor_is_refused_as_a_whole() -> None:
    assembler = WeightsAssembler(weights())
    [message] = messages(weights())
    wrong = {**message.tensors, "stranger": next(iter(message.tensors.values()))}
    with pytest.raises(MalformedMessage, match="'stranger' is not in this device's network"):
        assembler.add(Weights(run="r", round=3, tensors=wrong))
    assert assembler.tensors == {}


def test_weights_with_another_digest_are_refused_and_missing_again() -> None:
    assembler = WeightsAssembler(weights())
    for message in messages(weights()):
        assembler.add(message)
    with pytest.raises(MalformedMessage, match=r"SHA-256 is [0-9a-f]{12}, expected 0{12}"):
        assembler.check("0" * 64)
    assert sorted(assembler.missing) == sorted(weights())


def test_select_bounds_the_size_and_leaves_unknown_names_out() -> None:
    stored = {"a": torch.zeros(MESSAGE_BYTES // 8), "b": torch.zeros(MESSAGE_BYTES // 8), "c": torch.zeros(1)}
    assert list(select(stored, ["a", "b", "c", "nowhere"])) == ["a", "b"]
    assert select(stored, ["nowhere"]) == {}


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("client.first.0.weight", float("nan"), "not finite"),
        ("client.first.0.weight", 1e6, r"beyond \+-65504"),
        ("client.first.1.running_var", -1.0, "running_var holds negative values"),
        ("client.first.1.running_var", 1e12, "beyond"),
        ("client.first.1.num_batches_tracked", -1.0, "holds negative values"),
        ("client.first.1.num_batches_tracked", 3e38, "beyond"),
    ],
)
def test_weights_with_impossible_values_are_refused(name: str, value: float, said: str) -> None:
    like = weights()
    shape = list(like[name].shape) or [1]
    data = np.full(shape, value, "<f4").tobytes()
    assembler = WeightsAssembler(like)
    with pytest.raises(MalformedMessage, match=said):
        assembler.add(Weights(run="r", round=3, tensors={name: EncodedTensor("fp32", shape, data)}))
    assert assembler.tensors == {}


def test_weights_in_fp16_are_refused() -> None:
    like = weights()
    shape = list(like["client.first.0.bias"].shape)
    half = EncodedTensor("fp16", shape, bytes(2 * shape[0]))
    with pytest.raises(MalformedMessage, match="is encoded as 'fp16', expected fp32"):
        WeightsAssembler(like).add(Weights(run="r", round=3, tensors={"client.first.0.bias": half}))


def test_large_variances_are_accepted() -> None:
    sent = weights()
    sent["client.first.1.running_var"].fill_(1e9)
    assembler = WeightsAssembler(weights())
    for message in messages(sent):
        assembler.add(message)
    assembler.check(weights_digest(sent))


def test_diverged_network_is_not_sent() -> None:
    diverged = weights()
    diverged["client.first.0.weight"][0] = float("inf")
    with pytest.raises(Diverged, match="lower the learning rate"):
        list(pack_weights("r", 1, 1, diverged))
