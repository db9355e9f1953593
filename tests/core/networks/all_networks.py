# SPDX-License-Identifier: Apache-2.0
"""Every torchvision classifier at every cut and in a fleet. Runs only by name: takes minutes and GiBs."""

from __future__ import annotations

import pytest
import torch
from one_round import train_one_round

from splitee.cli.main import main
from splitee.networks.split import build_network
from splitee.networks.zoo import classifiers

SMALLEST = {"alexnet": 63, "inception_v3": 75, "maxvit_t": 224, "vit_h_14": 28}
LARGE = {"regnet_y_128gf", "vit_h_14"}  # one device takes 14 GiB


@pytest.mark.parametrize("name", classifiers())
def test_client_and_trunk_equal_the_whole_at_every_cut(name: str) -> None:
    size = SMALLEST.get(name, 32)
    split = build_network(name, num_classes=10, input_shape=(3, size, size))
    split.module.eval()
    x = torch.randn(2, *split.input_shape, generator=torch.Generator().manual_seed(7))
    keys = set(split.module.state_dict())
    with torch.no_grad():
        whole = split.module(x)
        for cut in range(1, split.num_layers):
            client, trunk = split.client(cut), split.trunk(cut)
            assert torch.equal(trunk(client(x)), whole), cut
            assert set(client.state_dict()) == keys - set(trunk.state_dict())
            assert set(client.state_dict()) == set(split.stage_keys(1, cut))
    assert len({stage.name for stage in split.stages}) == split.num_layers


@pytest.mark.parametrize("name", classifiers())
def test_it_trains_in_a_fleet(name: str) -> None:
    size = SMALLEST.get(name, 32)
    train_one_round(name, (3, size, size), (0.3,) if name in LARGE else (0, 0.5))


def test_the_summary_cuts_all_of_them(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main(["cuts", "--all"])
    lines = capsys.readouterr().out.splitlines()
    assert not exit_info.value.code
    assert len(classifiers()) == 80
    assert [line.split()[0] for line in lines[:-1]] == classifiers()
    assert lines[-1] == "80 of 80 networks can be cut, at 3x224x224"
