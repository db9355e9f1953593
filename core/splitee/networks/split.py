# SPDX-License-Identifier: Apache-2.0
"""A network that can be cut: gives the client network and the trunk for any cut."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import fx, nn
from torchvision.models.feature_extraction import DualGraphModule

from splitee.errors import NetworkError
from splitee.networks.exits import ExitHead, exit_head, exit_inputs
from splitee.networks.partition import partition
from splitee.networks.zoo import make
from splitee.protocol.run_spec import RunSpec


class SplitNetwork:
    """A network and its stages; client networks and trunks share its weights and parameter names.

    A parameter that the network's forward never uses belongs to no stage.
    """

    def __init__(
        self, name: str, module: nn.Module, *, num_classes: int, input_shape: tuple[int, ...]
    ) -> None:
        self.name = name
        self.module = module
        self.num_classes = num_classes
        self.input_shape = input_shape
        self._partition = partition(name, module, num_classes, input_shape)
        self.stages = self._partition.stages
        self.frozen = 0  # stages 1..frozen are not trained

    @property
    def num_layers(self) -> int:
        """Number of stages (L); a cut is in 1..L-1."""
        return len(self.stages)

    def client(self, cut: int) -> nn.Module:
        """Stages 1..cut: samples (B, *input_shape) to features (B, *stages[cut - 1].feature_shape)."""
        self.check_cut(cut)
        return self._range(0, cut, "Client")

    def client_to(self, cuts: Sequence[int]) -> nn.Module:
        """Stages 1..cuts[-1]: samples (B, *input_shape) to a list of the features at each of `cuts`.

        `cuts`: two or more, ascending.
        """
        self.check_cut(cuts[0])
        self.check_cut(cuts[-1])
        return self._range(0, cuts[-1], "Client", inner=cuts[:-1])

    def trunk(self, cut: int, inner: Sequence[int] = ()) -> nn.Module:
        """Stages cut+1..L: features (B, *stages[cut - 1].feature_shape) to logits (B, num_classes).

        `inner`: deeper cuts, ascending; with them it returns a list: the features at each, and the logits.
        """
        self.check_cut(cut)
        return self._range(cut, self.num_layers, "Trunk", inner)

    def stage(self, index: int) -> nn.Module:
        """Stage `index` (1..L) alone: the features that enter it to those that leave it."""
        return self._range(index - 1, index, "Stage")

    def freeze(self, count: int) -> None:
        """Stages 1..count are not trained from now on, also in parts that are made later.

        Their parameters need no gradients. In training they compute as in evaluation, if `set_training` sets
        training mode.

        Raises NetworkError: there is no cut after so many stages.
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
            for node in self._partition.nodes(training, 0, self.frozen)
            if node.op == "call_module"
        }
        return frozenset(found)

    def exit_head(self, cut: int, *, seed: int = 0) -> ExitHead:
        """A new classifier on the features of a cut."""
        self.check_cut(cut)
        stage = self.stages[cut - 1]
        return exit_head(stage.feature_shape, self.num_classes, seed=seed, channel_axis=stage.channel_axis)

    def exit_macs(self, cut: int) -> int:
        """Multiply-accumulates of the exit at a cut on one sample."""
        self.check_cut(cut)
        stage = self.stages[cut - 1]
        return exit_inputs(stage.feature_shape, stage.channel_axis) * self.num_classes

    def check_cut(self, cut: int) -> None:
        """Raises NetworkError if there is no such cut."""
        if not 1 <= cut < self.num_layers:
            raise NetworkError(
                f"cut {cut} is out of range: {self.name} can be cut at 1..{self.num_layers - 1}; "
                f"`splitee cuts {self.name}` lists them"
            )

    def stage_keys(self, first: int, last: int) -> list[str]:
        """The state_dict keys of stages first..last, both included, counted from 1."""
        return [key for stage in self.stages[first - 1 : last] for key in stage.keys]

    def _range(self, first: int, last: int, class_name: str, inner: Sequence[int] = ()) -> nn.Module:
        """Stages first+1..last; with `inner` cuts they return a list: the values there, and the last."""
        # The layers are shared: making one more part must not switch the others' mode.
        modes = [(module, module.training) for module in self.module.modules()]
        frozen = min(max(self.frozen, first), last)  # these compute as in evaluation, in both modes
        of = self._partition
        evaluate = _copy_nodes(
            [(of.ends[False][first], of.nodes(False, first, last))],
            [of.ends[False][cut] for cut in inner],
        )
        train = _copy_nodes(
            [
                (of.ends[False][first], of.nodes(False, first, frozen)),
                (of.ends[True][frozen], of.nodes(True, frozen, last)),
            ],
            [of.ends[cut > frozen][cut] for cut in inner],
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


class _BothModes(DualGraphModule):  # type: ignore[misc]
    """Runs the graph of its mode; unlike its parent's, a deep copy is in the mode of the original."""

    def __deepcopy__(self, memo: dict[int, Any]) -> _BothModes:
        copied: _BothModes = super().__deepcopy__(memo)
        copied.train(self.training)
        modes = {name: module.training for name, module in self.named_modules()}
        for name, module in copied.named_modules():
            module.training = modes[name]
        return copied


def build_for(spec: RunSpec, device: str = "cpu") -> SplitNetwork:
    """The network of a run, with the weights that its seed gives, and its frozen stages frozen.

    `device`: a torch device; on "meta" the network has its description, but no weights.
    """
    network = build_network(
        spec.network,
        num_classes=spec.num_classes,
        input_shape=spec.input_shape,
        stem=spec.stem,
        seed=spec.seed,
        device=device,
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

    Raises NetworkError: the name is unknown, the input does not fit, or the network cannot be cut.
    """
    module = make(name, num_classes=num_classes, input_shape=input_shape, stem=stem, seed=seed, device=device)
    return SplitNetwork(name, module, num_classes=num_classes, input_shape=input_shape)


def _copy_nodes(
    pieces: Sequence[tuple[fx.Node, tuple[fx.Node, ...]]], inner: Sequence[fx.Node] = ()
) -> fx.Graph:
    """A new graph: the value that crosses is its input, the last node's value is its output.

    Args:
        pieces: each has the node whose value enters it, and its nodes; one's output enters the next.
        inner: nodes whose values are outputs too, in a list before the last.
    """
    graph = fx.Graph()
    value = graph.placeholder("x")
    wanted: dict[fx.Node, fx.Node] = {}
    for source, nodes in pieces:
        copies = {source: value}
        for node in nodes:
            value = copies[node] = graph.node_copy(node, copies.__getitem__)
        wanted |= {node: copies[node] for node in inner if node in copies}
    graph.output([*(wanted[node] for node in inner), value] if inner else value)
    return graph


def _hide_constants(part: nn.Module, keys: list[str]) -> None:
    """Excludes tensors that the network's own state_dict omits, from the state_dicts of its parts too."""
    for name, tensor in list(part.named_buffers()):
        if name not in keys:
            owner, _, field = name.rpartition(".")
            part.get_submodule(owner).register_buffer(field, tensor, persistent=False)
