# SPDX-License-Identifier: Apache-2.0
"""Traces a network with torch.fx, in train and in eval mode, and finds where exactly one value crosses."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from itertools import accumulate
from operator import attrgetter
from typing import Any

import torch.nn.functional as F
import torchvision.ops
from torch import fx, nn
from torchvision.models.feature_extraction import NodePathTracer

from splitee.errors import NetworkError
from splitee.networks.zoo import first_line

NORM_MODULES = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
NORM_FUNCTIONS = (F.batch_norm, F.group_norm, F.instance_norm, F.layer_norm, F.rms_norm)
# What torchvision's create_feature_extractor treats as one operation.
LEAVES = [c for c in vars(torchvision.ops).values() if isinstance(c, type) and issubclass(c, nn.Module)]
NUMBERED = re.compile(r"(.+)_([0-9]+)")


class _Tracer(NodePathTracer):  # type: ignore[misc]
    proxy_buffer_attributes = True  # otherwise values computed from buffers alone would become constants

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._latest: dict[str, int] = {}  # number of the latest path NAME (0) or NAME_NUMBER, by NAME

    def _get_node_qualname(self, module_qualname: str, node: fx.Node) -> str:
        """The path that torchvision gives a node, without comparing it with the paths of all others."""
        path = module_qualname
        if node.op != "call_module":
            path = f"{path}.{node}" if path else str(node)
        if numbered := NUMBERED.fullmatch(path):  # torch.fx counts over the network, a path within its module
            path = numbered[1]
        if path in self._latest:
            path = f"{path}_{self._latest[path] + 1}"
        self._latest[path] = 0
        if numbered := NUMBERED.fullmatch(path):
            self._latest[numbered[1]] = int(numbered[2])
        return path


@dataclass(frozen=True)
class Trace:
    """One mode's graph: its nodes in order, from the input to the one that is returned."""

    nodes: tuple[fx.Node, ...]
    paths: dict[fx.Node, str]  # where in the network a node comes from, as torchvision names it; unique
    state: dict[fx.Node, dict[str, int]]  # the state_dict keys that a node uses, with their tensors' identity

    def places(self) -> dict[str, fx.Node]:
        """By path: the nodes after which their own value, and no other, is still needed.

        A parameter or buffer that is used again later crosses too, so stages never share weights.
        """
        position = {node: at for at, node in enumerate(self.nodes)}
        last = {
            node: max(position.get(user, len(position)) for user in node.users) if node.users else at
            for node, at in position.items()
        }
        uses: dict[int, list[int]] = {}
        for node, keys in self.state.items():
            for identity in keys.values():
                uses.setdefault(identity, []).append(position[node])
        spans = [(position[node], end) for node, end in last.items()]
        spans += [(min(at), max(at)) for at in uses.values()]
        change = [0] * (len(self.nodes) + 1)
        for begin, end in spans:
            change[begin] += 1
            change[end] -= 1
        crossing = list(accumulate(change))
        return {
            self.paths[node]: node
            for node, at in position.items()
            if crossing[at] == 1 and last[node] > at and node.op != "placeholder"
        }


def trace(network: nn.Module, name: str) -> dict[bool, Trace]:
    """The traces by `training`; the network's mode does not change.

    Raises NetworkError: the network cannot be traced, or has more than one input or output.
    """
    mode = network.training
    try:
        return {training: _trace(network.train(training), name) for training in (True, False)}
    finally:
        network.train(mode)


def _trace(network: nn.Module, name: str) -> Trace:
    tracer = _Tracer(autowrap_modules=(math, torchvision.ops), leaf_modules=LEAVES)
    try:
        graph = tracer.trace(network)
    except Exception as error:  # whatever the network's forward raises when it meets a symbolic value
        raise NetworkError(f"{name} cannot be traced: {type(error).__name__}: {first_line(error)}") from error
    *nodes, output = graph.nodes
    returned = output.args[0]
    inputs = sum(node.op == "placeholder" for node in nodes)
    if inputs != 1:
        raise NetworkError(
            f"{name} cannot be cut: its forward must take one tensor, it takes {inputs} inputs"
        )
    if not isinstance(returned, fx.Node):
        raise NetworkError(
            f"{name} cannot be cut: its forward must return one tensor, it returns {type(returned).__name__}"
        )
    nodes = nodes[: nodes.index(returned) + 1]
    return Trace(
        nodes=tuple(nodes),
        paths={node: tracer.node_to_qualname.get(node, node.name) for node in nodes},
        state={node: _state(network, node) for node in nodes},
    )


def _state(network: nn.Module, node: fx.Node) -> dict[str, int]:
    target = str(node.target)
    if node.op == "call_module":
        held = network.get_submodule(target).state_dict(prefix=f"{target}.", keep_vars=True)
        return {key: id(tensor) for key, tensor in held.items()}
    if node.op == "get_attr":
        owner, _, field = target.rpartition(".")
        held = network.get_submodule(owner).state_dict(keep_vars=True)
        return {target: id(held[field])} if field in held else {}
    return {}


def opens_stage(node: fx.Node, network: nn.Module) -> bool:
    """Whether a node begins a stage: it has parameters and is no normalisation.

    A normalisation closes the stage of the layer that it normalises.
    """
    if node.op == "call_module":
        module = network.get_submodule(str(node.target))
        return not isinstance(module, NORM_MODULES) and any(True for _ in module.parameters())
    if node.op == "get_attr" or node.target in NORM_FUNCTIONS:
        return False
    held = [str(source.target) for source in node.all_input_nodes if source.op == "get_attr"]
    return any(isinstance(attrgetter(target)(network), nn.Parameter) for target in held)
