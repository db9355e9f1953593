# SPDX-License-Identifier: Apache-2.0
"""Traced networks: the paths of their operations."""

from __future__ import annotations

from torch import Tensor, nn
from torchvision.models import googlenet
from torchvision.models.feature_extraction import get_graph_node_names

from splitee.networks.trace import trace


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.linear_1 = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear(x) + self.linear_1(x) + self.linear(x)
        return (x + 1).add_(1)


class Repeating(nn.Module):
    """Modules that are used several times, and names that end with a number."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Block()
        self.block_7 = Block()

    def forward(self, add_1: Tensor) -> Tensor:
        x = self.block(add_1 + 1) + 1
        return self.block(self.block_7(self.block(x))) + 1


def test_operation_paths_equal_those_of_torchvision() -> None:
    for network in (Repeating(), googlenet(init_weights=False, aux_logits=False)):
        train, evaluation = get_graph_node_names(network)
        traces = trace(network, "network")
        for training, expected in ((True, train), (False, evaluation)):
            assert list(traces[training].paths.values()) == expected
