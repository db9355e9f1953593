# SPDX-License-Identifier: Apache-2.0
"""A split network equals the whole: clients, trunks and exits of torchvision's and of user networks."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision import models

from splitee.errors import ExitCode, NetworkError
from splitee.networks.exits import exit_head
from splitee.networks.frozen import set_training
from splitee.networks.split import SplitNetwork, build_network

TRAINED_AT_EVERY_CUT = ("resnet18", "mobilenet_v2", "mobilenet_v3_small", "own_networks:Dropping")
FAMILIES = {
    "alexnet": 63,
    "convnext_tiny": 32,
    "densenet121": 32,
    "googlenet": 32,
    "inception_v3": 75,
    "mnasnet0_5": 32,
    "regnet_x_400mf": 32,
    "shufflenet_v2_x0_5": 32,
    "squeezenet1_1": 32,
    "swin_t": 32,
    "swin_v2_t": 32,
    "vgg11_bn": 32,
    "vit_b_32": 64,
}

OWN_NETWORKS = '''
import torch
import torch.nn.functional as F
from torch import nn


def sensor(num_classes):
    """A 1-D convolution network over windows of 6 channels."""
    return nn.Sequential(
        nn.Conv1d(6, 16, 5), nn.BatchNorm1d(16), nn.ReLU(), nn.MaxPool1d(2),
        nn.Conv1d(16, 32, 5), nn.BatchNorm1d(32), nn.ReLU(), nn.AdaptiveAvgPool1d(1),
        nn.Flatten(), nn.Linear(32, num_classes),
    )


class Net(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.third = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, num_classes)

    def classify(self, x):
        return self.head(x.mean((2, 3)))


class Dropping(Net):
    def forward(self, x):
        x = F.dropout(F.relu(self.first(x)), 0.5, training=self.training)
        x = F.dropout(F.relu(self.second(x)), 0.5, training=self.training)
        return self.classify(self.third(x))


class Shared(Net):
    def forward(self, x):
        x = F.relu(self.second(F.relu(self.first(x))))
        x = F.relu(self.third(x))
        return self.classify(F.relu(self.second(x)))


class InPlace(Net):
    def forward(self, x):
        x = self.first(x)
        y = F.interpolate(F.relu_(x), scale_factor=2)
        x = self.second(y + F.interpolate(x, scale_factor=2))
        return self.classify(self.third(x))


class Masked(Net):
    def __init__(self, num_classes):
        super().__init__(num_classes)
        self.register_buffer("scale", torch.full((8, 1, 1), 0.5), persistent=False)

    def forward(self, x):
        x = F.relu(self.first(x)) * self.scale
        return self.classify(self.second(x) + torch.tensor([2.0]))


class BakedBatch(Net):
    def forward(self, x):
        return self.classify(self.second(self.first(x).view(2, -1, 8, 8)[:, :8]))


class TwoInputs(Net):
    def forward(self, x, y):
        return self.classify(self.first(x) + y)


class TwoOutputs(Net):
    def forward(self, x):
        x = self.first(x)
        return self.classify(x), x


class Branching(Net):
    def forward(self, x):
        return self.classify(self.first(x) if x.sum() > 0 else self.second(self.first(x)))


class Residual(Net):
    def forward(self, x):
        y = self.first(x)
        return self.classify(self.second(y)) + x.mean((1, 2, 3))[:, None]


def unlike(num_classes):
    return Net.classify


def failing(num_classes):
    raise ValueError("no weights here")
'''


@pytest.fixture(scope="module", autouse=True)
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("own")
    Path(folder, "own_networks.py").write_text(OWN_NETWORKS)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield


def build(name: str, size: int = 32) -> SplitNetwork:
    size = 8 if name.startswith("own_networks:") else size
    return build_network(name, num_classes=10, input_shape=(3, size, size), seed=1)


def samples(split: SplitNetwork, count: int) -> Tensor:
    return torch.randn(count, *split.input_shape, generator=torch.Generator().manual_seed(7))


@pytest.mark.parametrize("frozen", [0, 1, 2])
@pytest.mark.parametrize("training", [False, True])
def test_features_at_several_cuts_equal_those_of_each_client(frozen: int, training: bool) -> None:
    split = build("own_networks:Dropping")
    split.freeze(frozen)
    x = samples(split, 3)
    together = split.client_to([1, 2, 3])
    set_training(together, split.frozen_modules) if training else together.eval()
    torch.manual_seed(3)
    found = together(x)
    for cut, features in enumerate(found, start=1):
        client = split.client(cut)
        set_training(client, split.frozen_modules) if training else client.eval()
        torch.manual_seed(3)
        assert torch.equal(client(x), features), cut
    assert set(together.state_dict()) == set(split.stage_keys(1, 3))


def check_equal(split: SplitNetwork, cuts: range | list[int]) -> None:
    """Client network and trunk give the whole network's output bit for bit, and divide its state."""
    x = samples(split, 2)
    split.module.eval()
    with torch.no_grad():
        whole = split.module(x)
        for cut in cuts:
            client, trunk = split.client(cut), split.trunk(cut)
            features = client(x)
            sent = features.clone()
            assert features.shape[1:] == split.stages[cut - 1].feature_shape
            assert torch.equal(trunk(features), whole), cut
            assert torch.equal(features, sent), f"the trunk of cut {cut} writes into its features"
            assert split.exit_head(cut)(features).shape == (2, split.num_classes)
            assert set(client.state_dict()) == set(split.stage_keys(1, cut))
            assert set(trunk.state_dict()) == set(split.stage_keys(cut + 1, split.num_layers))
    keys = split.stage_keys(1, split.num_layers)
    assert sorted(keys) == sorted(split.module.state_dict())
    assert len({stage.name for stage in split.stages}) == split.num_layers


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_client_and_trunk_equal_the_whole_network_in_every_family(name: str) -> None:
    split = build(name, FAMILIES[name])
    check_equal(split, [1, split.num_layers // 2, split.num_layers - 1])


@pytest.mark.slow
@pytest.mark.parametrize("name", [*TRAINED_AT_EVERY_CUT, "resnet50", "efficientnet_b0"])
def test_outputs_at_every_cut_and_trunk_gradients_equal_the_whole_network(name: str) -> None:
    split = build(name)
    last = split.num_layers - 1
    check_equal(split, range(1, last + 1))
    cuts = range(1, last + 1) if name in TRAINED_AT_EVERY_CUT else (1, last // 2, last)
    x, labels = samples(split, 4), torch.tensor([0, 1, 2, 3])
    whole = split.module.train()
    parameters = dict(whole.named_parameters())

    def gradients(loss: Tensor, keys: list[str]) -> list[Tensor]:
        return list(torch.autograd.grad(loss, [parameters[key] for key in keys]))

    # The same seed gives client and trunk, one after the other, the same dropout as the whole.
    torch.manual_seed(3)
    expected = dict(
        zip(parameters, gradients(F.cross_entropy(whole(x), labels), list(parameters)), strict=True)
    )
    for cut in cuts:
        client, trunk = split.client(cut), split.trunk(cut)
        torch.manual_seed(3)
        with torch.no_grad():
            features = client(x)
        loss = F.cross_entropy(trunk(features), labels)
        keys = [key for key in split.stage_keys(cut + 1, split.num_layers) if key in parameters]
        for key, gradient in zip(keys, gradients(loss, keys), strict=True):
            assert torch.equal(gradient, expected[key]), (cut, key)


@pytest.mark.slow
def test_resnet18_has_a_stem_eight_blocks_and_a_classifier() -> None:
    split = build_network("resnet18", num_classes=10, stem="small")
    blocks = [f"layer{layer}.{block}" for layer in (1, 2, 3, 4) for block in (0, 1)]
    assert [stage.name for stage in split.stages] == ["relu", *blocks[:-1], "avgpool", "fc"]
    assert [stage.index for stage in split.stages] == list(range(1, 11))
    assert [split.stages[cut - 1].feature_shape for cut in (3, 5, 7, 9, 10)] == [
        (64, 32, 32),
        (128, 16, 16),
        (256, 8, 8),
        (512,),
        (10,),
    ]
    assert split.stages[0].keys == (
        "conv1.weight",
        "bn1.weight",
        "bn1.bias",
        "bn1.running_mean",
        "bn1.running_var",
        "bn1.num_batches_tracked",
    )
    check_equal(split, range(1, 10))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "densenet121", "vit_b_16", "convnext_tiny"])
def test_parameters_and_macs_equal_those_published_by_torchvision(name: str) -> None:
    published = models.get_model_weights(name).IMAGENET1K_V1.meta
    split = build_network(name, num_classes=1000, input_shape=(3, 224, 224), device="meta")
    assert sum(stage.parameters for stage in split.stages) == published["num_params"]
    assert sum(stage.macs for stage in split.stages) / 1e9 == pytest.approx(published["_ops"], abs=1e-3)


def test_macs_of_a_stage_follow_the_formula() -> None:
    split = build("own_networks:Dropping")
    convolution = 8 * 8 * 8 * 9  # height x width x filters x kernel, per input channel
    assert [stage.macs for stage in split.stages] == [3 * convolution, 8 * convolution, 8 * convolution, 80]


def test_layer_and_its_normalisation_stay_in_one_stage() -> None:
    split = build_network("own_networks:sensor", num_classes=4, input_shape=(6, 64))
    assert [stage.name for stage in split.stages] == ["3", "8", "9"]
    assert [stage.feature_shape for stage in split.stages] == [(16, 30), (32,), (4,)]
    assert split.stages[0].channel_axis == 0
    check_equal(split, [1, 2])


@pytest.mark.slow
def test_parts_share_the_networks_parameters_and_keep_their_mode() -> None:
    split = build("swin_t")
    trunk, deeper = split.trunk(5).eval(), split.trunk(9)
    parameters = dict(split.module.named_parameters())
    assert all(parameter is parameters[name] for name, parameter in trunk.named_parameters())
    assert all(parameter is parameters[name] for name, parameter in deeper.named_parameters())
    assert not any(module.training for module in trunk.modules() if list(module.parameters(recurse=False)))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "swin_t"])
def test_training_a_deep_copy_does_not_change_the_original(name: str) -> None:
    split = build(name)
    trunk = split.trunk(3).eval()
    twin = copy.deepcopy(trunk)
    features = torch.randn(2, *split.stages[2].feature_shape)
    before = trunk(features)
    assert torch.equal(twin(features), before)
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1)
    twin.train()(features).sum().backward()
    optimizer.step()
    assert torch.equal(trunk(features), before)
    assert not torch.equal(twin.eval()(features), before)


def test_functional_dropout_follows_the_mode_of_its_part() -> None:
    split = build("own_networks:Dropping")
    x = samples(split, 2)
    client = copy.deepcopy(split.client(1))
    assert not torch.equal(client.train()(x), client(x))
    assert torch.equal(client.eval()(x), client(x))
    check_equal(split, range(1, split.num_layers))


def test_weights_that_are_used_twice_stay_in_one_stage() -> None:
    split = build("own_networks:Shared")
    assert [{key.split(".")[0] for key in stage.keys} for stage in split.stages] == [
        {"first"},
        {"second", "third"},
        {"head"},
    ]
    check_equal(split, [1, 2])


def test_value_that_is_written_in_place_later_is_not_a_cut() -> None:
    split = build("own_networks:InPlace")
    assert [stage.feature_shape for stage in split.stages] == [(8, 16, 16), (8, 16, 16), (8,), (10,)]
    check_equal(split, [1, 2, 3])


def test_non_persistent_state_is_not_in_the_state_of_parts() -> None:
    split = build("own_networks:Masked")
    x = samples(split, 2)
    client, trunk = split.client(1), split.trunk(1)
    assert set(client.state_dict()) == {"first.weight", "first.bias"}
    assert torch.equal(trunk(client(x)), split.module(x))
    assert set(trunk.state_dict()) == {"second.weight", "second.bias", "head.weight", "head.bias"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("own_networks:TwoInputs", "2 inputs"),
        ("own_networks:TwoOutputs", "returns tuple"),
        ("own_networks:Branching", "cannot be traced: TraceError"),
        ("own_networks:Residual", "nowhere between its layers"),
        ("own_networks:BakedBatch", "of 5 samples it makes 2"),
        ("own_networks:unlike", "must return a torch.nn.Module, it returned function"),
        ("own_networks:failing", "cannot be built: ValueError: no weights here"),
        ("own_networks:missing", "module 'own_networks' has no 'missing'"),
        ("no_such_module:factory", "no module named 'no_such_module'"),
        (":factory", "expected module:factory"),
        ("resnet19", "nearest: resnet18"),
        ("Zebra", "`splitee cuts --all` lists the names"),
        ("inception_v3", "does not run on 3x8x8"),
        ("tiny_networks:squeezing", "its smallest input is 11x11"),
        ("tiny_networks:tiny", "does not run on 3x8x8"),
    ],
)
def test_network_that_cannot_be_cut_is_refused_in_one_line(name: str, reason: str) -> None:
    with pytest.raises(NetworkError) as refused:
        build_network(name, num_classes=10, input_shape=(3, 8, 8))
    assert reason in str(refused.value)
    assert "\n" not in str(refused.value)
    assert refused.value.exit_code is ExitCode.NETWORK


@pytest.mark.parametrize(
    ("name", "stem", "shape", "reason"),
    [
        ("squeezenet1_1", "small", (3, 32, 32), "is for the resnets"),
        ("resnet18", "tiny", (3, 32, 32), "choose one of imagenet, small"),
        ("resnet18", "imagenet", (1, 28, 28), "3 channels"),
        ("vit_b_16", "imagenet", (3, 32, 64), "square images, not 32x64"),
        ("vit_b_16", "imagenet", (3, 40, 40), "multiples of 16 pixels, not 40x40"),
        ("vit_h_14", "imagenet", (3, 96, 96), "multiples of 14 pixels, not 96x96"),
        ("maxvit_t", "imagenet", (3, 96, 96), "multiples of 224 pixels, not 96x96"),
    ],
)
def test_unsuitable_stem_or_input_shape_is_refused(
    name: str, stem: str, shape: tuple[int, ...], reason: str
) -> None:
    with pytest.raises(NetworkError, match=reason):
        build_network(name, num_classes=10, input_shape=shape, stem=stem)


@pytest.mark.parametrize("cut", [-1, 0, 10, 99])
def test_cut_out_of_range_is_refused_with_the_range(cut: int) -> None:
    split = build_network("resnet18", num_classes=10, device="meta")
    for part in (split.client, split.trunk, split.exit_head, split.check_cut):
        with pytest.raises(NetworkError, match=rf"cut {cut} is out of range: resnet18 can be cut at 1\.\.9"):
            part(cut)


@pytest.mark.slow
def test_initial_weights_depend_on_the_seed_only() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, same = (build_network("resnet18", num_classes=10, seed=1).module.state_dict() for _ in range(2))
    other = build_network("resnet18", num_classes=10, seed=2).module.state_dict()
    head = exit_head((64, 8, 8), 10, seed=4).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert not torch.equal(one["conv1.weight"], other["conv1.weight"])
    assert torch.equal(head["linear.weight"], exit_head((64, 8, 8), 10, seed=4).linear.weight)


@pytest.mark.parametrize(
    ("shape", "channel_axis", "cells"),
    [
        ((6, 4, 5), 0, [np.s_[:, :, h, w] for h in (np.s_[:2], np.s_[2:]) for w in (np.s_[:3], np.s_[3:])]),
        ((4, 2, 6), 2, [np.s_[:, h, w] for h in (np.s_[:2], np.s_[2:]) for w in (np.s_[:1], np.s_[1:])]),
        ((7, 6), 1, [np.s_[:, :4], np.s_[:, 4:]]),
        ((6, 1, 2), 0, [np.s_[:, :, :, :1], np.s_[:, :, :, 1:]]),
        ((6,), 0, [np.s_[:]]),
    ],
)
def test_exit_head_averages_halves_of_each_axis_and_normalises(
    shape: tuple[int, ...], channel_axis: int, cells: list[Any]
) -> None:
    head = exit_head(shape, 3, seed=0, channel_axis=channel_axis)
    features = torch.randn(5, *shape)
    rest = tuple(1 + axis for axis in range(len(shape)) if axis != channel_axis)
    means = torch.from_numpy(np.concatenate([features.numpy()[cell].mean(rest) for cell in cells], axis=1))
    normal = (means - means.mean(0)) / torch.sqrt(means.var(0, unbiased=False) + head.norm.eps)
    expected = normal @ head.linear.weight.T + head.linear.bias
    torch.testing.assert_close(head(features), expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "cut", "channels", "cells"),
    [
        ("resnet18", 3, 64, 4),
        ("swin_t", 3, 96, 4),
        ("vit_b_32", 5, 768, 2),
        ("convnext_tiny", 2, 96, 4),
        ("maxvit_t", 3, 64, 4),
    ],
)
def test_exit_head_finds_the_channels_of_every_layout(name: str, cut: int, channels: int, cells: int) -> None:
    split = build_network(name, num_classes=10, input_shape=(3, 224, 224), device="meta")
    stage = split.stages[cut - 1]
    assert stage.feature_shape[stage.channel_axis] == channels
    assert split.exit_head(cut).linear.in_features == cells * channels
