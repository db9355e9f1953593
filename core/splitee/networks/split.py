"""Cuts a network into stages, and gives the client network and the trunk of any cut.

A cut is a place where exactly one tensor crosses. Neighbouring places with no parameters between them are one
cut, at the smallest tensor (the last of equals); a normalisation stays with the layer that it normalises. So
resnet18 has 10 stages: the stem, eight blocks, and the classifier.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from torch import fx, nn
from torchvision.models.feature_extraction import DualGraphModule

from splitee.errors import NetworkError
from splitee.networks.exits import ExitHead, exit_head
from splitee.networks.measure import BATCH, Value, measure
from splitee.networks.trace import Trace, opens_stage, trace
from splitee.networks.zoo import make
from splitee.protocol.run_spec import RunSpec
from splitee.samples.fitting import by


@dataclass(frozen=True)
class Stage:
    """What lies between two neighbouring cuts."""

    index: int  # from 1
    name: str  # the path of the stage's last module, such as "layer1.1"
    feature_shape: tuple[int, ...]  # of its output, without the batch
    keys: tuple[str, ...]  # the state_dict keys that it owns: parameters and buffers
    parameters: int
    macs: int  # multiply-accumulates a sample
    channel_axis: int = 0  # in feature_shape; the last for tokens (T, C) and channels-last maps (H, W, C)


class SplitNetwork:
    """A network and its stages; client networks and trunks share its weights, and name them as it does.

    A parameter that the network's forward never uses belongs to no stage.
    """

    def __init__(
        self, name: str, module: nn.Module, *, num_classes: int, input_shape: tuple[int, ...]
    ) -> None:
        self.name = name
        self.module = module
        self.num_classes = num_classes
        self.input_shape = input_shape
        self._traces = trace(module, name)
        values, macs = measure(self._traces[False].nodes[0].graph, module, name, input_shape)
        _check_output(name, values.get(self._traces[False].nodes[-1]), num_classes)
        self._ends = _find_ends(name, module, self._traces, values)
        self.stages = self._describe(values, macs)
        self.frozen = 0  # stages 1..frozen are not trained

    @property
    def num_layers(self) -> int:
        """How many stages there are (L); a cut is in 1..L-1."""
        return len(self.stages)

    def client(self, cut: int) -> nn.Module:
        """Stages 1..cut: samples (B, *input_shape) to features (B, *stages[cut - 1].feature_shape)."""
        self.check_cut(cut)
        return self._range(0, cut, "Client")

    def trunk(self, cut: int) -> nn.Module:
        """Stages cut+1..L: features (B, *stages[cut - 1].feature_shape) to logits (B, num_classes)."""
        self.check_cut(cut)
        return self._range(cut, self.num_layers, "Trunk")

    def stage(self, index: int) -> nn.Module:
        """Stage `index` (1..L) alone: the features that enter it to those that leave it."""
        return self._range(index - 1, index, "Stage")

    def freeze(self, count: int) -> None:
        """Stages 1..count are not trained from now on: of parts that are made later, neither.

        Their parameters need no gradients; in training they compute as in evaluation, if `set_training` is
        what begins it.

        Raises NetworkError: no cut lies behind so many stages.
        """
        if not 0 <= count < self.num_layers:
            raise NetworkError(
                f"--freeze {count} is beyond the deepest cut: {self.name} can be frozen up to stage "
                f"{self.num_layers - 1}; `splitee cuts {self.name}` lists them"
            )
        self.frozen = count
        frozen = set(self.frozen_keys)
        for name, parameter in self.module.named_parameters():
            if name in frozen:
                parameter.requires_grad_(False)

    @property
    def frozen_keys(self) -> list[str]:
        """The state_dict keys of the frozen stages."""
        return self.stage_keys(1, self.frozen)

    @property
    def frozen_modules(self) -> frozenset[str]:
        """The paths of the layers that frozen stages use, for `set_training`."""
        found = {
            str(node.target)
            for training in (True, False)
            for node in self._nodes(training, 0, self.frozen)
            if node.op == "call_module"
        }
        return frozenset(found)

    def exit_head(self, cut: int, *, seed: int = 0) -> ExitHead:
        """A new classifier on the features of a cut."""
        self.check_cut(cut)
        stage = self.stages[cut - 1]
        return exit_head(stage.feature_shape, self.num_classes, seed=seed, channel_axis=stage.channel_axis)

    def check_cut(self, cut: int) -> None:
        """Raises NetworkError where there is no such cut."""
        if not 1 <= cut < self.num_layers:
            raise NetworkError(
                f"cut {cut} is out of range: {self.name} can be cut at 1..{self.num_layers - 1}; "
                f"`splitee cuts {self.name}` lists them"
            )

    def stage_keys(self, first: int, last: int) -> list[str]:
        """The state_dict keys of stages first..last, both included, counted from 1."""
        return [key for stage in self.stages[first - 1 : last] for key in stage.keys]

    def _nodes(self, training: bool, first: int, last: int) -> tuple[fx.Node, ...]:
        """The nodes after end `first` up to end `last`; end 0 is the input, end L what is returned."""
        nodes, ends = self._traces[training].nodes, self._ends[training]
        return nodes[nodes.index(ends[first]) + 1 : nodes.index(ends[last]) + 1]

    def _range(self, first: int, last: int, class_name: str) -> nn.Module:
        # The layers are shared: making one more part must not switch the others' mode.
        modes = [(module, module.training) for module in self.module.modules()]
        frozen = min(max(self.frozen, first), last)  # these compute as in evaluation, in both modes
        evaluate = _copy_nodes((self._ends[False][first], self._nodes(False, first, last)))
        train = _copy_nodes(
            (self._ends[False][first], self._nodes(False, first, frozen)),
            (self._ends[True][frozen], self._nodes(True, frozen, last)),
        )
        if str(train) == str(evaluate):
            part: fx.GraphModule = fx.GraphModule(self.module, evaluate, class_name)
        else:
            # Calls such as F.dropout(training=self.training) are fixed in the graph of each mode.
            part = _BothModes(self.module, train, evaluate, class_name)
        part.train(self.module.training)
        for module, mode in modes:
            module.training = mode
        _hide_constants(part, self.stage_keys(first + 1, last))
        return part

    def _describe(self, values: Mapping[fx.Node, Value], macs: Mapping[fx.Node, int]) -> tuple[Stage, ...]:
        order = list(self.module.state_dict())
        count = len(self._ends[False]) - 1
        held = [
            {
                key
                for training, traced in self._traces.items()
                for node in self._nodes(training, index, index + 1)
                for key in traced.state[node]
            }
            for index in range(count)
        ]
        if sum(map(len, held)) != len(set().union(*held)):
            raise NetworkError(f"{self.name} cannot be cut: in training it uses weights at other places")
        parameters = dict(self.module.named_parameters())
        stages = []
        for index, keys in enumerate(held):
            nodes = self._nodes(False, index, index + 1)
            end = values[nodes[-1]]
            stages.append(
                Stage(
                    index=index + 1,
                    name=_stage_name(self._traces[False], nodes, self.module),
                    feature_shape=end.shape[1:],
                    channel_axis=end.channel_axis - 1,
                    keys=tuple(key for key in order if key in keys),
                    parameters=sum(parameters[key].numel() for key in keys if key in parameters),
                    macs=sum(macs[node] for node in nodes),
                )
            )
        return tuple(stages)


class _BothModes(DualGraphModule):  # type: ignore[misc]
    """Runs the graph of its mode; unlike its parent's, a deep copy is in the mode of the original."""

    def __deepcopy__(self, memo: dict[int, Any]) -> _BothModes:
        twin: _BothModes = super().__deepcopy__(memo)
        twin.train(self.training)
        modes = {name: module.training for name, module in self.named_modules()}
        for name, module in twin.named_modules():
            module.training = modes[name]
        return twin


def build_for(spec: RunSpec) -> SplitNetwork:
    """The network of a run, with the weights that its seed gives, and its frozen stages frozen."""
    network = build_network(
        spec.network,
        num_classes=spec.num_classes,
        input_shape=spec.input_shape,
        stem=spec.stem,
        seed=spec.seed,
    )
    if spec.frozen:
        network.freeze(spec.frozen)
    return network


def build_network(
    name: str,
    *,
    num_classes: int,
    input_shape: tuple[int, ...] = (3, 32, 32),
    stem: str = "imagenet",
    seed: int = 0,
    device: str = "cpu",
) -> SplitNetwork:
    """A torchvision classifier, or `module:factory` (called with num_classes), with fresh weights.

    The seed alone decides the weights; the global random state is left as it was. `stem` "small" is the
    32-pixel variant of the resnets: 3x3 with stride 1, no pooling. On device "meta" the network has its
    description, but no weights. A factory is code of this machine: never build a name of this form that came
    over the wire.

    Raises NetworkError where the name is unknown, the input does not fit, or the network cannot be cut.
    """
    module = make(name, num_classes=num_classes, input_shape=input_shape, stem=stem, seed=seed, device=device)
    return SplitNetwork(name, module, num_classes=num_classes, input_shape=input_shape)


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
            f"{name} must give {num_classes} numbers a sample, one a class; it gives {by(value.shape[1:])}"
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


def _copy_nodes(*pieces: tuple[fx.Node, tuple[fx.Node, ...]]) -> fx.Graph:
    """A graph of its own: what crosses comes in, the last node's value goes out.

    `pieces`: each the node whose value enters it, and its nodes; what leaves one enters the next.
    """
    graph = fx.Graph()
    value = graph.placeholder("x")
    for source, nodes in pieces:
        copies = {source: value}
        for node in nodes:
            value = copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(value)
    return graph


def _hide_constants(part: nn.Module, keys: list[str]) -> None:
    """Keeps tensors that the network's own state_dict leaves out, out of its parts' too."""
    for name, tensor in list(part.named_buffers()):
        if name not in keys:
            owner, _, field = name.rpartition(".")
            part.get_submodule(owner).register_buffer(field, tensor, persistent=False)


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
