# SPDX-License-Identifier: Apache-2.0
"""Runs a traced network on the meta device to find the shapes of values and the costs of operations."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from splitee.errors import NetworkError
from splitee.networks.layout import channel_axes
from splitee.networks.zoo import first_line, smallest_input
from splitee.protocol.fields import LARGEST_SIDE
from splitee.samples.fitting import format_shape

FORMULAS = FlopCounterMode(display=False).flop_registry
BATCH = 5  # a size that a network is unlikely to have elsewhere, so that the batch axis is recognisable


@dataclass(frozen=True)
class Value:
    """The output of a node that gives one tensor."""

    shape: tuple[int, ...]  # with a batch of BATCH
    channel_axis: int  # counted with the batch axis, so 1 for image maps and for flat features
    kept: bool  # whether no later node writes into it in place

    @property
    def can_cross(self) -> bool:
        return self.kept and len(self.shape) > 1 and self.shape[0] == BATCH


def measure(
    graph: fx.Graph, network: nn.Module, name: str, input_shape: tuple[int, ...]
) -> tuple[dict[fx.Node, Value], dict[fx.Node, int]]:
    """The output and the multiply-accumulates per sample of every node, without computing them.

    Raises NetworkError if the network does not accept such an input.
    """
    run = _Run(_on_meta(network), graph)
    try:
        # With gradients on, attention takes the path that the operation counter knows.
        with torch.enable_grad():
            run.run(torch.empty(BATCH, *input_shape, device="meta"))
    except Exception as error:  # whatever an operation raises on shapes that it cannot take
        least = smallest_input(name) or _smallest_square(run.module, input_shape)
        hint = f"; its smallest input is {least}" if least else ""
        raise NetworkError(
            f"{name} does not run on {format_shape(input_shape)}: {first_line(error)}{hint}"
        ) from error
    axes = channel_axes(run.values, network)
    values = {
        node: Value(tuple(value.shape), axes.get(node, 1), kept=value._version == run.versions[node])
        for node, value in run.values.items()
    }
    return values, {node: flops // 2 // BATCH for node, flops in run.flops.items()}


def _smallest_square(network: nn.Module, input_shape: tuple[int, ...]) -> str | None:
    """The smallest height and width, equal, on which a network on the meta device runs, found by bisection.

    None: the input is no image, or the network runs on none up to LARGEST_SIDE.
    """
    if len(input_shape) != 3:
        return None
    fails, runs = 0, LARGEST_SIDE
    if not _runs_on(network, (input_shape[0], runs, runs)):
        return None
    while runs - fails > 1:
        middle = (fails + runs) // 2
        if _runs_on(network, (input_shape[0], middle, middle)):
            runs = middle
        else:
            fails = middle
    return format_shape((runs, runs))


def _runs_on(network: nn.Module, input_shape: tuple[int, ...]) -> bool:
    try:
        network(torch.empty(BATCH, *input_shape, device="meta"))
    except Exception:  # as above
        return False
    return True


def _on_meta(network: nn.Module) -> nn.Module:
    """The same network without its weights' memory."""
    replaced: dict[int, Any] = {}
    for module in network.modules():
        parts = [*module._parameters.values(), *module._buffers.values(), *vars(module).values()]
        for tensor in parts:
            if isinstance(tensor, nn.Parameter):
                empty = torch.empty_like(tensor, device="meta")
                replaced[id(tensor)] = nn.Parameter(empty, requires_grad=tensor.is_floating_point())
            elif isinstance(tensor, torch.Tensor):
                replaced[id(tensor)] = torch.empty_like(tensor, device="meta")
    return copy.deepcopy(network, replaced).eval()


class _Run(fx.Interpreter):
    """Keeps each node's value, its version at that time, and the operations that it needed."""

    def __init__(self, network: nn.Module, graph: fx.Graph) -> None:
        super().__init__(network, garbage_collect_values=False, graph=graph)
        self.values: dict[fx.Node, torch.Tensor] = {}
        self.versions: dict[fx.Node, int] = {}
        self.flops: dict[fx.Node, int] = {}

    def run_node(self, n: fx.Node) -> Any:
        with _Flops() as counter:
            value = super().run_node(n)
        if isinstance(value, torch.Tensor) and n.op != "output":
            self.values[n] = value
            self.versions[n] = value._version
        self.flops[n] = counter.total
        return value


class _Flops(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts with the formulas of torch's FlopCounterMode, which also examines every other operation.

    That takes most of the time, and operations without a formula contain none that has one.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        formula = FORMULAS.get(func._overloadpacket)
        if formula is not None:
            self.total += formula(*args, **kwargs, out_val=result)
        return result
