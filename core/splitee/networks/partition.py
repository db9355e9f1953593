# SPDX-License-Identifier: Apache-2.0
"""Divides a network's graph into stages, at its cuts.

A cut is a place where exactly one tensor crosses. Neighbouring places with no parameters between them are one
cut, at the smallest tensor (the last of equals); a normalisation stays with the layer that it normalises. So
resnet18 has 10 stages: the stem, eight blocks, and the classifier.
"""

from __future__ import annotations

import threading
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from math import prod

from torch import Tensor, fx, nn

from splitee.errors import NetworkError
from splitee.networks.measure import BATCH, Value, measure
from splitee.networks.trace import Trace, opens_stage, trace
from splitee.samples.fitting import format_shape

CACHE_SIZE = 8  # partitions of this process's last networks


@dataclass(frozen=True)
class Stage:
    """The layers between two neighbouring cuts."""

    index: int  # from 1
    name: str  # the path of the stage's last module, such as "layer1.1"
    feature_shape: tuple[int, ...]  # of its output, without the batch
    keys: tuple[str, ...]  # the state_dict keys that it owns: parameters and buffers
    parameters: int
    macs: int  # multiply-accumulates a sample
    channel_axis: int = 0  # in feature_shape; the last for tokens (T, C) and channels-last maps (H, W, C)


@dataclass(frozen=True)
class Partition:
    """A network's stages, and its graphs by `training`: it holds no weights.

    Attributes:
        ends: by `training`: the input, the value that crosses at each cut, and the value that is returned.
    """

    traces: Mapping[bool, Trace]
    ends: Mapping[bool, list[fx.Node]]
    stages: tuple[Stage, ...]

    def nodes(self, training: bool, first: int, last: int) -> tuple[fx.Node, ...]:
        """The nodes of stages first+1..last: after end `first`, up to end `last`."""
        return _between(self.traces[training], self.ends[training], first, last)


def partition(name: str, network: nn.Module, num_classes: int, input_shape: tuple[int, ...]) -> Partition:
    """The partition of a network; networks of the same structure share one.

    Raises:
        NetworkError: it does not accept such an input, gives no logits of `num_classes`, or cannot be cut.
    """
    key = (name, num_classes, input_shape, _structure(network))
    with _lock:
        found = _cache.pop(key, None)
        if found is None:
            found = _divide(name, network, num_classes, input_shape)
        if _is_shareable(found, network):
            _cache[key] = found
            if len(_cache) > CACHE_SIZE:
                del _cache[next(iter(_cache))]
        return found


_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
_lock = threading.RLock()
_cache: dict[Hashable, Partition] = {}


def _structure(network: nn.Module) -> Hashable:
    """A key that is equal for networks of the same modules, settings and shapes, whatever their weights."""
    modules = tuple(
        (path, type(module), _settings(module))
        for path, module in network.named_modules(remove_duplicate=False)
    )
    state = network.state_dict(keep_vars=True)
    first = {id(tensor): key for key, tensor in reversed(state.items())}  # shows which of them are shared
    return modules, tuple((key, tensor.shape, first[id(tensor)]) for key, tensor in state.items())


def _settings(module: nn.Module) -> Hashable:
    own = {name: value for name, value in vars(module).items() if name not in _OF_EVERY_MODULE}
    return tuple((name, repr(value)) for name, value in own.items() if not isinstance(value, Tensor))


def _is_shareable(found: Partition, network: nn.Module) -> bool:
    """Whether the graphs refer to nothing that tracing has added to this network alone, such as constants."""
    own = {name for name, _ in (*network.named_parameters(), *network.named_buffers())}
    nodes = (node for traced in found.traces.values() for node in traced.nodes)
    return all(str(node.target) in own for node in nodes if node.op == "get_attr")


def _divide(name: str, network: nn.Module, num_classes: int, input_shape: tuple[int, ...]) -> Partition:
    traces = trace(network, name)
    values, macs = measure(traces[False].nodes[0].graph, network, name, input_shape)
    _check_output(name, values.get(traces[False].nodes[-1]), num_classes)
    ends = _find_ends(name, network, traces, values)
    return Partition(traces, ends, _describe(name, network, traces, ends, values, macs))


def _between(traced: Trace, ends: list[fx.Node], first: int, last: int) -> tuple[fx.Node, ...]:
    return traced.nodes[traced.nodes.index(ends[first]) + 1 : traced.nodes.index(ends[last]) + 1]


def _check_output(name: str, value: Value | None, num_classes: int) -> None:
    if value is None:
        raise NetworkError(f"{name} cannot be cut: its forward must return one tensor")
    if value.shape[0] != BATCH:
        raise NetworkError(
            f"{name} cannot be cut: of {BATCH} samples it makes {value.shape[0]}; "
            "take the batch's size from the input"
        )
    if value.shape[1:] != (num_classes,):
        raise NetworkError(
            f"{name} must give {num_classes} numbers a sample, one a class; it gives "
            f"{format_shape(value.shape[1:])}"
        )


def _find_ends(
    name: str, network: nn.Module, traces: Mapping[bool, Trace], values: Mapping[fx.Node, Value]
) -> dict[bool, list[fx.Node]]:
    """By `training`: the input, the value that crosses at each cut, and the value that is returned."""
    places = {training: traced.places() for training, traced in traces.items()}
    paths, nodes = traces[False].paths, traces[False].nodes
    opened = 0
    chosen: dict[int, fx.Node] = {}
    for node in nodes:
        opened += opens_stage(node, network)
        here = values.get(node)
        if here and here.can_cross and all(paths[node] in found for found in places.values()):
            before = chosen.get(opened)
            if before is None or prod(here.shape) <= prod(values[before].shape):
                chosen[opened] = node
    cuts = [paths[node] for count, node in chosen.items() if 0 < count < opened]
    if not cuts:
        raise NetworkError(f"{name} cannot be cut: nowhere between its layers does exactly one tensor cross")
    return {
        training: [traced.nodes[0], *(places[training][path] for path in cuts), traced.nodes[-1]]
        for training, traced in traces.items()
    }


def _describe(
    name: str,
    network: nn.Module,
    traces: Mapping[bool, Trace],
    ends: Mapping[bool, list[fx.Node]],
    values: Mapping[fx.Node, Value],
    macs: Mapping[fx.Node, int],
) -> tuple[Stage, ...]:
    order = list(network.state_dict())
    held = [
        {
            key
            for training, traced in traces.items()
            for node in _between(traced, ends[training], index, index + 1)
            for key in traced.state[node]
        }
        for index in range(len(ends[False]) - 1)
    ]
    if sum(map(len, held)) != len(set().union(*held)):
        raise NetworkError(f"{name} cannot be cut: in training it uses weights at other places")
    parameters = dict(network.named_parameters())
    stages = []
    for index, keys in enumerate(held):
        nodes = _between(traces[False], ends[False], index, index + 1)
        end = values[nodes[-1]]
        stages.append(
            Stage(
                index=index + 1,
                name=_stage_name(traces[False], nodes, network),
                feature_shape=end.shape[1:],
                channel_axis=end.channel_axis - 1,
                keys=tuple(key for key in order if key in keys),
                parameters=sum(parameters[key].numel() for key in keys if key in parameters),
                macs=sum(macs[node] for node in nodes),
            )
        )
    return tuple(stages)


def _stage_name(traced: Trace, nodes: tuple[fx.Node, ...], network: nn.Module) -> str:
    """The last module: the largest that lies wholly in the stage, or else the smallest that ends there."""
    at = traced.nodes.index(nodes[0])
    before = [traced.paths[node] for node in traced.nodes[:at]]
    after = [traced.paths[node] for node in traced.nodes[at + len(nodes) :]]
    for node in reversed(nodes):
        is_module = node.op == "call_module"
        if is_module and isinstance(network.get_submodule(str(node.target)), nn.Identity):
            continue
        steps = traced.paths[node].split(".")
        enclosing = [".".join(steps[:depth]) for depth in range(1, len(steps) + is_module)]
        ended = [path for path in enclosing if not _any_inside(path, after)]
        whole = [path for path in ended if not _any_inside(path, before)]
        if ended:
            return [*whole, ended[-1]][0]
    return traced.paths[nodes[-1]]


def _any_inside(module: str, paths: list[str]) -> bool:
    return any(path == module or path.startswith(f"{module}.") for path in paths)
