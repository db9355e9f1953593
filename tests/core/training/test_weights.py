# SPDX-License-Identifier: Apache-2.0
"""Client networks as messages: exact to the bit, and nothing but what the cut has."""

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
    MESSAGE,
    WeightsAssembler,
    client_model,
    in_messages,
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


def test_what_arrives_is_what_was_sent() -> None:
    sent = weights()
    arrival = WeightsAssembler(weights())
    for message in messages(sent):
        assert (message.run, message.round, message.attempt) == ("r", 3, 7)
        arrival.add(message)
    assert arrival.missing == []
    arrival.check(weights_digest(sent))
    for name, tensor in sent.items():
        assert torch.equal(arrival.tensors[name], tensor)
        assert arrival.tensors[name].dtype == tensor.dtype


def test_many_tensors_travel_in_messages_of_a_bounded_size() -> None:
    sizes = {f"w{index:02d}": MESSAGE // 3 for index in range(10)} | {"large": 2 * MESSAGE}
    found = list(in_messages(sizes))
    assert [name for names in found for name in names] == sorted(sizes)
    assert all(len(names) == 1 or sum(sizes[name] for name in names) <= MESSAGE for names in found)
    assert len(found) == 5


def test_a_tensor_that_no_message_holds() -> None:
    with pytest.raises(ConfigError, match="classifier takes 392 MiB, more than a message may"):
        list(in_messages({"classifier": 4 * 25_088 * 4096}))


@pytest.mark.parametrize(
    ("name", "shape", "said"),
    [
        ("client.first.0.bias", [5], r"client\.first\.0\.bias has shape \(5,\), expected \(4,\)"),
        ("client.hidden.1.weight", [16, 72], "'client.hidden.1.weight' is not in this device's network"),
    ],
)
def test_a_tensor_of_another_network_changes_nothing(name: str, shape: list[int], said: str) -> None:
    arrival = WeightsAssembler(weights())
    data = bytes(4 * torch.Size(shape).numel())
    with pytest.raises(MalformedMessage, match=said):
        arrival.add(Weights(run="r", round=3, tensors={name: EncodedTensor("fp32", shape, data)}))
    assert arrival.tensors == {}


def test_a_message_with_one_wrong_tensor_changes_nothing() -> None:
    arrival = WeightsAssembler(weights())
    [message] = messages(weights())
    wrong = {**message.tensors, "stranger": next(iter(message.tensors.values()))}
    with pytest.raises(MalformedMessage, match="'stranger' is not in this device's network"):
        arrival.add(Weights(run="r", round=3, tensors=wrong))
    assert arrival.tensors == {}


def test_weights_that_are_not_those_announced_are_asked_for_anew() -> None:
    arrival = WeightsAssembler(weights())
    for message in messages(weights()):
        arrival.add(message)
    with pytest.raises(MalformedMessage, match=r"SHA-256 is [0-9a-f]{12}, expected 0{12}"):
        arrival.check("0" * 64)
    assert sorted(arrival.missing) == sorted(weights())


def test_what_is_asked_for_is_bounded_and_what_is_unknown_is_left_out() -> None:
    there = {"a": torch.zeros(MESSAGE // 8), "b": torch.zeros(MESSAGE // 8), "c": torch.zeros(1)}
    assert list(select(there, ["a", "b", "c", "nowhere"])) == ["a", "b"]
    assert select(there, ["nowhere"]) == {}


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
def test_values_that_no_honest_network_has_change_nothing(name: str, value: float, said: str) -> None:
    like = weights()
    shape = list(like[name].shape) or [1]
    data = np.full(shape, value, "<f4").tobytes()
    arrival = WeightsAssembler(like)
    with pytest.raises(MalformedMessage, match=said):
        arrival.add(Weights(run="r", round=3, tensors={name: EncodedTensor("fp32", shape, data)}))
    assert arrival.tensors == {}


def test_weights_travel_as_fp32_only() -> None:
    like = weights()
    shape = list(like["client.first.0.bias"].shape)
    half = EncodedTensor("fp16", shape, bytes(2 * shape[0]))
    with pytest.raises(MalformedMessage, match="is encoded as 'fp16', expected fp32"):
        WeightsAssembler(like).add(Weights(run="r", round=3, tensors={"client.first.0.bias": half}))


def test_large_variances_travel() -> None:
    sent = weights()
    sent["client.first.1.running_var"].fill_(1e9)
    arrival = WeightsAssembler(weights())
    for message in messages(sent):
        arrival.add(message)
    arrival.check(weights_digest(sent))


def test_a_network_that_has_diverged_is_not_sent() -> None:
    diverged = weights()
    diverged["client.first.0.weight"][0] = float("inf")
    with pytest.raises(Diverged, match="lower the learning rate"):
        list(pack_weights("r", 1, 1, diverged))
