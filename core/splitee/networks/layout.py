# SPDX-License-Identifier: Apache-2.0
"""Follows the channel axis through a traced network, so that an exit knows which axes to average over."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import torch
from torch import fx, nn
from torchvision.ops import Permute

MOVES = {"permute", "transpose", "swapaxes", "swapdims", "movedim", "moveaxis"}
PROBE = (2, 3, 5, 7, 11, 13, 17, 19)  # sizes that distinguish the axes


def channel_axes(values: Mapping[fx.Node, torch.Tensor], network: nn.Module) -> dict[fx.Node, int]:
    """The channel axis of every value that comes from the input, counted with the batch axis.

    The input's is 1; layers keep it, permutations move it, and reshaping keeps it if its elements stay.
    """
    axes: dict[fx.Node, int] = {}
    for node, value in values.items():
        source = next((other for other in node.all_input_nodes if other in axes), None)
        if node.op == "placeholder" or value.dim() == 2:
            axes[node] = 1
        elif source is not None and _is_move(node, network):
            axes[node] = _after_move(node, network, values[source].dim(), axes[source])
        elif source is not None:
            axes[node] = _after(values[source].shape, value.shape, axes[source])
    return axes


def _is_move(node: fx.Node, network: nn.Module) -> bool:
    if node.op == "call_module":
        return isinstance(network.get_submodule(str(node.target)), Permute)
    return getattr(node.target, "__name__", node.target) in MOVES


def _after_move(node: fx.Node, network: nn.Module, rank: int, axis: int) -> int:
    """Where a permutation moves the axis, found with a tensor whose sizes are all different."""
    probe = torch.empty(PROBE[:rank], device="meta")
    args = fx.node.map_arg(node.args, lambda _: probe)
    if node.op == "call_module":
        moved = network.get_submodule(str(node.target))(*args)
    elif node.op == "call_method":
        moved = getattr(probe, str(node.target))(*args[1:], **node.kwargs)
    else:
        moved = node.target(*args, **fx.node.map_arg(node.kwargs, lambda _: probe))  # type: ignore[operator]
    return list(moved.shape).index(PROBE[axis])


def _after(old: torch.Size, new: torch.Size, axis: int) -> int:
    """Where any other operation leaves the axis: in place, or where its size and its stride reappear."""
    if len(old) == len(new) and old.numel() != new.numel():
        return axis
    same_stride = [i for i, size in enumerate(new) if (size, prod(new[i:])) == (old[axis], prod(old[axis:]))]
    same_size = [i for i, size in enumerate(new) if i and size == old[axis]]
    return [*same_stride, *same_size, min(axis, len(new) - 1)][0]
