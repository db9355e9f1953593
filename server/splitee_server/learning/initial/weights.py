# SPDX-License-Identifier: Apache-2.0
"""A run's initial weights from a source: fitted to its network, durable, and identified by their digest."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from splitee.errors import ConfigError
from splitee.networks.split import SplitNetwork
from splitee.networks.zoo import make
from splitee.protocol.run_spec import RunSpec
from splitee.protocol.seasons import Season
from splitee.samples.fitting import format_shape
from splitee.training.state import COUNTER, pack_state, unpack_state
from splitee.training.weights import first_out_of_bounds

Weights = Mapping[str, Tensor]
SHOWN = 12  # hexadecimal digits of the digest in RunSpec.weights

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SourceWeights:
    """What a source holds.

    Attributes:
        name: of the source, for people.
        tensors: of the whole network, by its names.
        exits: by cut, by the exit's names.
        class_names: of the classes that head and exits distinguish; empty: not known.
        mean, std: of the images they were trained with, one per channel or one for all; empty: not known.
        seasons: the runs that they come from, in their order.
    """

    name: str
    tensors: Weights
    exits: Mapping[int, Weights] = field(default_factory=dict)
    class_names: tuple[str, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    seasons: tuple[Season, ...] = ()


@dataclass(frozen=True)
class InitialWeights:
    """A run's initial weights.

    Attributes:
        tensors: all of the network's, by its names.
        exits: by cut, of those that are not new.
        class_names: which the run takes over with them; empty: none.
    """

    tensors: Weights
    exits: Mapping[int, Weights] = field(default_factory=dict)
    class_names: tuple[str, ...] = ()

    def load_into(self, network: SplitNetwork) -> None:
        """Load the weights into `network`; parts that are made of it later have them, too."""
        network.module.load_state_dict(self.tensors)

    def encode(self) -> bytes:
        exits = {cut: dict(tensors) for cut, tensors in self.exits.items()}
        return pack_state({"tensors": dict(self.tensors), "exits": exits, "class_names": self.class_names})

    @classmethod
    def decode(cls, data: bytes) -> InitialWeights:
        """Raises StateError: it is not what `encode` gives."""
        state: dict[str, Any] = unpack_state(data)
        return cls(state["tensors"], state["exits"], tuple(state["class_names"]))


def fit(
    found: SourceWeights, network: SplitNetwork, spec: RunSpec, class_names: tuple[str, ...]
) -> InitialWeights:
    """Fit a source's weights to a run's network. If the source has other classes, head and exits come from
    the seed.

    Args:
        network: of the run, with the weights that its seed gives.
        class_names: that are given for the run; empty: those of the source, if they are as many as the
            run's.

    Raises:
        ConfigError: they are another network's; names the first tensor that differs.
    """
    own = network.module.state_dict()
    head = _head(network, spec)
    is_same = _has_same_classes(found, own, head, class_names)
    taken = {name: found.tensors.get(name) for name in own}
    for name, there in taken.items():
        if name in head and not is_same:
            taken[name] = None
        elif not name.endswith(COUNTER):
            _check(found.name, name, there, own[name])
    tensors = {
        name: fresh.clone() if (there := taken[name]) is None else there.detach().to(fresh.dtype).clone()
        for name, fresh in own.items()
    }
    _check_values(found.name, tensors)
    if ignored := len(found.tensors.keys() - own.keys()):
        log.info("weights: %d tensors of %s are not in %s: ignored", ignored, found.name, network.name)
    if not is_same:
        log.info("weights: the classes are not those of %s: the head and the exits are new", found.name)
    exits = {cut: dict(weights) for cut, weights in found.exits.items()} if is_same else {}
    return InitialWeights(tensors, exits, (class_names or found.class_names) if is_same else ())


def _head(network: SplitNetwork, spec: RunSpec) -> set[str]:
    """The tensors whose shapes depend on the number of classes."""
    more = make(
        spec.network,
        num_classes=spec.num_classes + 1,
        input_shape=spec.input_shape,
        stem=spec.stem,
        seed=spec.seed,
        device="meta",
    )
    shapes = {name: tensor.shape for name, tensor in more.state_dict().items()}
    return {name for name, tensor in network.module.state_dict().items() if shapes.get(name) != tensor.shape}


def _has_same_classes(
    found: SourceWeights, own: Weights, head: set[str], class_names: tuple[str, ...]
) -> bool:
    if any(name not in found.tensors or found.tensors[name].shape != own[name].shape for name in head):
        return False
    if not class_names or not found.class_names or class_names == found.class_names:
        return True
    gone = [name for name in found.class_names if name not in class_names]
    new = [name for name in class_names if name not in found.class_names]
    if gone or new:
        words = f"new: {', '.join(new[:5]) or 'none'}; gone: {', '.join(gone[:5]) or 'none'}"
    else:
        words = "the same in another order"
    log.warning("weights: --classes are not those of %s (%s)", found.name, words)
    return False


def _check(source: str, name: str, there: Tensor | None, own: Tensor) -> None:
    if there is None:
        raise ConfigError(f"--weights: {source} has no tensor {name!r}: is it of another --network?")
    if there.shape != own.shape:
        raise ConfigError(
            f"--weights: {source} is of another network: {name} is {_shape(there)} there, "
            f"{_shape(own)} in this one; --network, --stem and --input must be those it was trained with"
        )


def _check_values(source: str, tensors: Weights) -> None:
    if (name := first_out_of_bounds(tensors)) is not None:
        raise ConfigError(f"--weights: {source}: {name} holds a value that is not finite, or too large")


def _shape(tensor: Tensor) -> str:
    return format_shape(tuple(tensor.shape)) or "a scalar"
