# SPDX-License-Identifier: Apache-2.0
"""The interface of a cooperative strategy. Strategies know tensors and devices' names, not MQTT.

A new strategy is a file beside this one with a subclass of `Strategy` (the shortest to begin from is
sequential.py), and a line in registry.py.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.linalg import vector_norm
from torch.nn.utils import clip_grads_with_norm_

from splitee.errors import Diverged
from splitee.networks.split import SplitNetwork
from splitee.protocol.run_spec import RunSpec
from splitee.training.batchnorm_statistics import FreshStatistics
from splitee.training.learning_rate import learning_rate, set_rate
from splitee.training.optimizer import forget_gradients, make_optimizer
from splitee.training.placement import precision_at, seed_at
from splitee.training.seeds import seed_for
from splitee.training.weights import deeper_cuts
from splitee_server.learning.lanes import LANES
from splitee_server.learning.trunk_parts import TrunkParts

LARGEST_GRADIENT = 1e6  # norm that is still scaled down; beyond it the batch gives no step


class Untrainable(Diverged):
    """A batch that gives no step: its loss or its gradient is not finite, or out of bounds."""


class TrunkStep(NamedTuple):
    """The result of one step of a trunk: its loss, and `logits` (B, classes) from before the step."""

    loss: float
    logits: Tensor


@contextmanager
def statistics_kept_on_error(buffers: Sequence[Tensor]) -> Iterator[None]:
    """Restore BatchNorm's statistics, which a forward pass changes, if an error follows."""
    before = [(buffer, buffer.clone()) for buffer in buffers]
    try:
        yield
    except Exception:
        for buffer, kept in before:
            buffer.copy_(kept)
        raise


class Strategy(ABC):
    """Trains trunks from the batches of devices with different cuts."""

    def __init__(self, network: SplitNetwork, spec: RunSpec) -> None:
        self._network = network
        self._spec = spec
        self._frozen = network.frozen_modules
        self._cuts: dict[str, int] = {}  # by device; needed where trunks are made by `_new_trunk`
        self._exits: Mapping[int, nn.Module] = {}
        self._parts = WeakKeyDictionary[nn.Module, TrunkParts]()

    @property
    @abstractmethod
    def order(self) -> Literal["step", "joint", "share", "device", "any"]:
        """In which order batches of different devices must be trained for the result to be defined."""

    @abstractmethod
    def join(self, device: str, cut: int) -> None:
        """Make `device`, whose network ends at `cut`, known; a second call changes nothing."""

    @abstractmethod
    def trunk(self, device: str) -> nn.Module:
        """The trunk that continues `device`'s client network, as `_new_trunk` has made it."""

    @abstractmethod
    def shared_with(self, device: str) -> str:
        """The name of that trunk: the same for devices that have their cut and all its weights in common."""

    @abstractmethod
    def optimizer(self, device: str) -> torch.optim.Optimizer:
        """The optimizer of that trunk."""

    @abstractmethod
    def aggregate(self, samples: Mapping[str, int]) -> None:
        """End a round in which the devices named in `samples` have trained on that many samples each."""

    @abstractmethod
    def absorb(self, means: Mapping[str, Tensor]) -> None:
        """Take over tensors by name, as averaged over client networks and trunks."""

    @abstractmethod
    def move(self, device: str, cut: int, own: Mapping[str, Tensor]) -> None:
        """Change the cut of `device`. `own`: its client network's tensors, for stages added to its trunk."""

    @abstractmethod
    def weights(self) -> dict[str, Tensor]:
        """All trunk weights, by names that do not depend on when devices joined."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """Everything the next round depends on."""

    @abstractmethod
    def load(self, state: dict[str, Any]) -> None:
        """Continue from `state`; devices named in it are joined.

        Its tensors may share memory, but for those of optimizers: they are copied, not taken over.
        """

    def sum_up(self, device: str, samples: int) -> None:  # noqa: B027  most hold no trunk for each device
        """A device, trained on `samples` samples, has finished the round: its trunk may be freed.

        Devices come in the order of `splitee_server.learning.lanes.in_order`.
        """

    def forget(self, device: str) -> None:  # noqa: B027
        """A device drops out of the round: discard what only its own trunk has learnt in it."""

    def abandon_round(self) -> None:  # noqa: B027
        """All devices have dropped out of the round: discard what is there for its end. It begins anew."""

    def phase_state(self, devices: Iterable[str], *, averages: bool) -> dict[str, Any]:
        """What another process needs to train these devices' own trunks; tensors are shared, not copied.

        Only for strategies that are registered as `multi_rank`, like all methods up to `load_round_result`.

        Args:
            averages: include what all trunks have in common, which changes at a commit.
        """
        raise NotImplementedError

    def load_phase_state(self, state: Mapping[str, Any]) -> None:
        """Begin a phase with `phase_state`."""
        raise NotImplementedError

    def momentum_state(self, device: str) -> dict[str, Any]:
        """What a device's trunk has from earlier rounds beside its tensors; empty: nothing."""
        raise NotImplementedError

    def load_momentum_state(self, device: str, state: Mapping[str, Any]) -> None:
        """Load `momentum_state`."""
        raise NotImplementedError

    def round_result(self, device: str) -> dict[str, Any]:
        """A device's trunk after a round's training, which is freed; empty: it was not trained."""
        raise NotImplementedError

    def load_round_result(self, device: str, state: Mapping[str, Any]) -> None:
        """Load `round_result`, as if the trunk had been trained here."""
        raise NotImplementedError

    def begin_step(self, step: int) -> None:  # noqa: B027
        """Batches of step `step` of a round follow, with the order "joint"."""

    def part_of_step(self, lanes: range) -> dict[str, Any]:
        """The sums of this process's batches in the open joint step, for `end_step`; they are not kept here.

        Only for strategies with the order "joint", like all methods up to `follow_step`.

        Args:
            lanes: those whose devices this process serves.
        """
        raise NotImplementedError

    def end_step(self, *others: Mapping[str, Any], lanes: range = range(LANES)) -> dict[str, Tensor]:
        """Take the joint step, with the batches here and what `part_of_step` has returned elsewhere.

        Args:
            others: in the order of their lanes, which follow those here.
            lanes: as in `part_of_step`, of this process.

        Returns:
            The tensors that a step may change, by name; always the same, in the same order. Empty: there
            was no batch.
        """
        raise NotImplementedError

    def move_to(self, places: Mapping[str, Tensor]) -> None:
        """Keep weights of the trunk in other memory from now on.

        Args:
            places: tensors there, by name, which have the weights' values already.
        """
        raise NotImplementedError

    def follow_step(self, changed: Mapping[str, Tensor]) -> None:
        """Load what `end_step` has changed elsewhere."""
        raise NotImplementedError

    def supervise(self, exits: Mapping[int, nn.Module]) -> None:
        """From now on trunks also learn through these exits, by cut, which do not change."""
        self._exits = exits

    def train(
        self,
        device: str,
        features: Tensor,
        labels: Tensor,
        *,
        round_number: int,
        step: int,
        steps: int,
        offsets: Tensor | float = 0.0,
    ) -> TrunkStep:
        """One step of the trunk on features (B, ...) and labels (B,).

        Args:
            offsets: (classes,), added to logits in the loss.

        Raises:
            Untrainable: the step is not taken.
        """
        self._before_step(device, len(labels), step)
        trunk, optimizer = self.trunk(device), self.optimizer(device)
        parts = self._parts_of(trunk)
        parts.set_training(trunk)
        seed_at(features.device, seed_for(self._spec.seed, "trunk", device, round_number, step))
        try:
            with statistics_kept_on_error(parts.buffers):
                with precision_at(features.device, self._spec.precision):
                    computed = _outputs(trunk, features)
                *inner, logits = (one.float() for one in computed)
                loss = F.cross_entropy(logits + offsets, labels)
                total = loss + self._loss_of_exits(device, inner, labels, offsets)
                total.backward()  # type: ignore[no-untyped-call]
                self._bound_gradient(parts.parameters, loss.item())
            self._use_gradient(device, len(labels), round_number, step, steps)
        finally:
            forget_gradients(optimizer)  # for many trunks they would take as much memory as the weights
        return TrunkStep(loss.item(), logits.detach())

    def _parts_of(self, trunk: nn.Module) -> TrunkParts:
        if trunk not in self._parts:
            self._parts[trunk] = TrunkParts(trunk, self._frozen)
        return self._parts[trunk]

    def _before_step(self, device: str, samples: int, step: int) -> None:  # noqa: B027  most need nothing
        """What a strategy does before step `step` of a round, on a batch of `samples` samples."""

    def _use_gradient(self, device: str, samples: int, round_number: int, step: int, steps: int) -> None:
        """Take a step with the gradient that the device's trunk has, of a batch of `samples` samples."""
        self._step(self.optimizer(device), round_number, step, steps)

    def _step(self, optimizer: torch.optim.Optimizer, round_number: int, step: int, steps: int) -> None:
        highest = self._spec.trunk_learning_rate or self._spec.learning_rate
        set_rate(optimizer, learning_rate(self._spec, round_number, step, steps, highest=highest))
        optimizer.step()

    def _loss_of_exits(
        self, device: str, inner: Sequence[Tensor], labels: Tensor, offsets: Tensor | float
    ) -> Tensor | float:
        """Deep supervision (Lee et al., Deeply-Supervised Nets, 2015): weighted cross-entropies of exits.

        A stage that is a client's on one device and the trunk's for another learns the same on both sides.

        Args:
            inner: features at the deeper cuts of the fleet, (B, ...) each.
        """
        if not inner or not self._exits:
            return 0.0
        cuts = deeper_cuts(self._spec, self._cuts[device])
        losses = [
            F.cross_entropy(self._exits[at](features) + offsets, labels)
            for at, features in zip(cuts, inner, strict=True)
        ]
        return self._spec.deep_supervision * torch.stack(losses).sum()

    def _bound_gradient(self, parameters: Sequence[nn.Parameter], loss: float) -> None:
        """Clip the gradient's norm as the run sets it. Raises Untrainable."""
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        # Like get_total_norm, but that also sorts gradients by device, which takes longer than small norms.
        norm = vector_norm(torch.stack([vector_norm(gradient) for gradient in gradients]))
        if not (math.isfinite(loss) and norm.item() <= LARGEST_GRADIENT):
            raise Untrainable(f"a batch gives the loss {loss:g} and a gradient of norm {norm.item():g}")
        if 0 < self._spec.clip_gradient < norm:
            clip_grads_with_norm_(parameters, self._spec.clip_gradient, norm)

    @torch.no_grad()
    def logits(self, device: str, features: Tensor) -> Tensor:
        """The trunk's logits (B, classes) for features (B, ...) of `device`; it learns nothing."""
        trunk = self.trunk(device)
        trunk.eval()
        return _outputs(trunk, features)[-1]

    @torch.no_grad()
    def observe(
        self, device: str, features: Tensor, fresh: FreshStatistics, *, round_number: int, step: int
    ) -> None:
        """Add to `fresh`, of the device's trunk, what its BatchNorm layers see in features (B, ...)."""
        trunk = self.trunk(device)
        self._parts_of(trunk).set_training(trunk)
        seed_at(features.device, seed_for(self._spec.seed, "trunk", device, round_number, step))
        with fresh.batch():
            trunk(features)

    def tensors(self, device: str) -> dict[str, Tensor]:
        """The tensors of a device's trunk, by name."""
        return dict(self.trunk(device).state_dict())

    def trained(self, device: str) -> dict[str, Tensor]:
        """The tensors of a device's trunk except those of frozen stages, by name."""
        frozen = set(self._network.frozen_keys)
        return {name: tensor for name, tensor in self.tensors(device).items() if name not in frozen}

    def predict(self, device: str, features: Tensor) -> Tensor:
        """Labels (B,) that the trunk gives features (B, ...) of `device`."""
        return self.logits(device, features).argmax(dim=1)

    @staticmethod
    @torch.no_grad()
    def _write(trunk: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        """Copy those of `tensors` that the trunk has."""
        for name, tensor in trunk.state_dict().items():
            if name in tensors:
                tensor.copy_(tensors[name])

    def _new_trunk(self, cut: int) -> nn.Module:
        """Features (B, ...) -> logits (B, classes); or a list of the features at deeper cuts, and that."""
        return self._network.trunk(cut, deeper_cuts(self._spec, cut))

    def _new_optimizer(self, trunk: nn.Module) -> torch.optim.Optimizer:
        return make_optimizer(trunk.parameters(), self._spec)


def _outputs(trunk: nn.Module, features: Tensor) -> list[Tensor]:
    """The logits, last, and before them the features at deeper cuts, if the trunk returns them."""
    found: Tensor | list[Tensor] = trunk(features)
    return found if isinstance(found, list) else [found]
