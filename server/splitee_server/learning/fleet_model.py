# SPDX-License-Identifier: Apache-2.0
"""The models of a fleet, and what a commit does to them: trunks, client networks, soft labels."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from splitee.networks.split import SplitNetwork
from splitee.protocol.run_spec import RunSpec
from splitee.training.batchnorm_statistics import FreshStatistics
from splitee.training.named_trunks import NamedTrunk, NamedTrunks
from splitee.training.placement import lay_out
from splitee.training.soft_labels import SoftLabels
from splitee.training.weights import WeightsAssembler, first_out_of_bounds
from splitee_server.learning.averages import average_statistics, weigh
from splitee_server.learning.class_mix import ClassMix
from splitee_server.learning.client_networks import ClientNetworks, by_network_names
from splitee_server.learning.clipping import clip_updates
from splitee_server.learning.initial.weights import InitialWeights
from splitee_server.learning.loss_filter import LossFilter
from splitee_server.learning.means import Rule
from splitee_server.learning.soft_labels import SoftLabelStore
from splitee_server.learning.strategies.base import Untrainable
from splitee_server.learning.strategies.registry import make_strategy


@dataclass(frozen=True)
class Contribution:
    """A device's contribution to a round that it has finished.

    Args:
        weights: its client network and exit, averaged in place; None: it has sent none. A device that
            moves must have sent them.
        next_cut: its cut from this commit on; 0: unchanged.
        samples: its number of training images when the round began; None: as now.
    """

    weights: Mapping[str, Tensor] | None = None
    next_cut: int = 0
    samples: int | None = None


class FleetModel:
    """Trains trunks from what devices send. Between two commits only trunks change, by `train`.

    Attributes:
        network: has the run's initial weights.
        spec: the run's settings, as decided so far.
    """

    def __init__(self, spec: RunSpec, network: SplitNetwork, initial: InitialWeights | None = None) -> None:
        """A fleet's models before the first round.

        Args:
            network: has the run's initial weights; the trunks are made of its layers.
            initial: these weights, if devices are to receive them; None: they come from the seed.
        """
        lay_out(network.module, spec.precision)
        self.network = network
        self.spec = spec
        self._initial = initial
        self._strategy = make_strategy(network, spec)
        self._clients = ClientNetworks(spec, network, self._strategy, initial)
        self._soft_labels = SoftLabelStore(spec)
        self._class_mix = ClassMix(spec)
        self._loss_filter = LossFilter(spec.largest_loss)
        self._cuts: dict[str, int] = {}
        self._trained: dict[str, int] = {}  # samples by device, since the last commit
        self._committed: dict[str, int] = {}  # the same, of the last commit
        self._observed: dict[str, FreshStatistics] = {}  # of trunks by device, since then
        self._fresh = False
        self._supervise()

    @property
    def order(self) -> Literal["step", "joint", "share", "device", "any"]:
        """In which order `train` must be given batches of different devices."""
        return self._strategy.order

    def stage_name(self, cut: int) -> str:
        """The name of the last stage before a cut."""
        return self.network.stages[cut - 1].name

    def feature_shape(self, cut: int) -> tuple[int, ...]:
        """The shape of a sample's features at a cut, without the batch."""
        return self.network.stages[cut - 1].feature_shape

    def join(self, device: str, cut: int, samples: int) -> None:
        """Register a device; may be repeated. Soft labels for another number of samples are dropped."""
        self._strategy.join(device, cut)
        self._soft_labels.count(device, samples)
        self._cuts[device] = cut

    def settle(self, spec: RunSpec) -> None:
        """Apply settings that are now decided (frozen stages, exits), before anything is trained."""
        self.spec = spec
        self.network.freeze(spec.frozen)
        self._strategy = make_strategy(self.network, spec)
        self._clients = ClientNetworks(self.spec, self.network, self._strategy, self._initial)
        for device, cut in self._cuts.items():
            self._strategy.join(device, cut)
        self._supervise()

    def adopt(self, device: str) -> None:
        """A late joiner starts from the average of its cut, where client networks are averaged."""
        self._clients.adopt(device, self._cuts[device], self._cuts)

    def assembler(self, cut: int) -> WeightsAssembler:
        """Takes the messages that carry the client network of a device with this cut."""
        return self._clients.assembler(cut)

    @property
    def is_fresh(self) -> bool:
        """Whether BatchNorm's statistics have been recomputed since the last commit."""
        return self._fresh

    def statistics_assembler(self, cut: int) -> WeightsAssembler:
        """Takes the messages that carry the statistics of a client network with this cut."""
        return self._clients.statistics_assembler(cut)

    def train(
        self, device: str, features: Tensor, labels: Tensor, *, round_number: int, step: int, steps: int
    ) -> float:
        """One step of the device's trunk; for a device that is left out, only the loss is computed.

        Args:
            features: (B, *feature_shape) float32 at the device's cut.
            labels: (B,) int64.
            step: of the round, from 0; `steps`: how many the device makes in it.

        Returns:
            The mean loss of the batch, before the step.

        Raises:
            Untrainable: no step can be taken on the batch; nothing has changed.
        """
        self._strategy.begin_step(step)
        self._class_mix.add(device, labels)
        offsets = self._class_mix.offsets(device, features.device)
        if self._loss_filter.leaves_out(device):
            logits = self._strategy.logits(device, features)
            loss = F.cross_entropy(logits + offsets, labels).item()
            if not math.isfinite(loss):
                raise Untrainable(f"a batch gives the loss {loss:g}")
        else:
            loss, logits = self._strategy.train(
                device,
                features,
                labels,
                round_number=round_number,
                step=step,
                steps=steps,
                offsets=offsets,
            )
            self._trained[device] = self._trained.get(device, 0) + len(labels)
        self._loss_filter.add(device, loss)
        self._soft_labels.add(device, round_number, logits)
        return loss

    def sum_up(self, device: str) -> None:
        """A device has finished the round: if it has its own trunk, add that to the average, and free it.

        Devices come in the order of `splitee_server.learning.lanes.in_order`. Trunks for which this is not
        called are averaged when the round is committed, with the same result.
        """
        self._strategy.sum_up(device, self._trained.get(device, 0))

    def forget(self, device: str) -> None:
        """A device drops out of the round: discard what only its own trunk has learnt in it.

        Its losses, class mix and soft labels are as before the round, however many of its batches have come.
        """
        self._strategy.forget(device)
        self._class_mix.forget(device)
        self._loss_filter.forget(device)
        self._soft_labels.forget(device)
        self._trained.pop(device, None)

    def abandon_round(self) -> None:
        """As `Strategy.abandon_round`."""
        self._strategy.abandon_round()

    def predict(self, device: str, features: Tensor) -> Tensor:
        """Labels (B,) int64 that the device's trunk gives its features (B, *feature_shape)."""
        return self._strategy.predict(device, features)

    def logits(self, device: str, features: Tensor) -> Tensor:
        """Logits (B, classes) of the device's trunk for its features (B, *feature_shape)."""
        return self._strategy.logits(device, features)

    @torch.no_grad()
    def exit_logits(self, device: str, features: Tensor) -> Tensor | None:
        """Logits of the device's exit; None: its network is not held."""
        if device not in self._clients:
            return None
        logits: Tensor = self._clients.exit(device, self._cuts[device])(features)
        return logits

    def observe(self, device: str, features: Tensor, *, round_number: int, step: int) -> None:
        """Observe the statistics of a batch in the device's trunk, which does not change.

        Args:
            features: (B, *feature_shape) float32 at the device's cut.
            step: of the device in this phase, from 0.

        Raises:
            Untrainable: the batch gives statistics that are out of bounds; it is left out.
        """
        trunk = self._strategy.trunk(device)
        batch = FreshStatistics(trunk)
        self._strategy.observe(device, features, batch, round_number=round_number, step=step)
        if first_out_of_bounds(batch.means()) is not None:
            raise Untrainable("a batch gives statistics that are not finite, or out of bounds")
        self._observed.setdefault(device, FreshStatistics(trunk)).add(batch)

    def refresh(self, received: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Give the committed networks the statistics that devices and their trunks have observed in them.

        They are averaged over the devices that count in the commit, weighted and clipped as there.

        Args:
            received: of client networks and exits, by device; their trunks' are known from `observe`.
        """
        found = {}
        weights = {d: weight for d, weight in weigh(self._committed, self.spec.weighting).items() if weight}
        for device in sorted(received.keys() & self._observed.keys() & weights.keys()):
            found[device] = self._whole(device, self._observed[device].means(), received[device])
        if self.spec.clip_updates:
            starts = {
                device: self._whole(device, self._strategy.tensors(device), self._clients[device])
                for device in found
            }
            clip_updates(found, starts, self.spec.clip_updates)
        means = average_statistics(found, weights, Rule.of(self.spec))
        self._strategy.absorb(means)
        self._clients.absorb(means, self._cuts)
        self._observed, self._fresh = {}, True

    def _whole(
        self, device: str, trunk: Mapping[str, Tensor], client: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Tensors of both sides of a device's cut, as the network and `exits_by_cut` name them."""
        return {**trunk, **by_network_names(client, self._cuts[device])}

    def commit(self, number: int, contributions: Mapping[str, Contribution]) -> dict[str, int]:
        """End round `number`: soft labels, averages of trunks and client networks, then moves.

        If a run weights by samples, a device's weight is the number that the trunk was trained on.

        Args:
            contributions: by device, of those that have finished the round; each has joined.

        Returns:
            The new cuts, of the devices that have moved.
        """
        samples = {device: self._trained.get(device, 0) for device in contributions}
        self._trained, self._observed, self._fresh = {}, {}, False
        self._committed = samples
        self._class_mix.end_round()
        self._loss_filter.end_round()
        self._soft_labels.end_round(number, {d: c.samples for d, c in contributions.items()})
        self._strategy.aggregate(samples)
        received = {d: c.weights for d, c in contributions.items() if c.weights is not None}
        self._clients.commit(received, self._cuts, samples)
        moved = {d: c.next_cut for d, c in sorted(contributions.items()) if c.next_cut}
        self._clients.move(moved, self._cuts)
        self._cuts.update(moved)
        self._supervise()
        return moved

    @property
    def left_out(self) -> list[str]:
        """Devices whose batches the next round does not train on, as RunSpec.largest_loss says."""
        return self._loss_filter.state()

    def holds(self, device: str) -> bool:
        """Whether the device is to start its next round from a client network that is held here."""
        return device in self._clients

    def client(self, device: str) -> Mapping[str, Tensor]:
        """The client network and exit that are held for a device, by name. Raises KeyError: none are."""
        return self._clients[device]

    def digest(self, device: str) -> str:
        """SHA-256 of `client`. Raises KeyError: none is held."""
        return self._clients.digest(device)

    def initial_digest(self, device: str) -> str | None:
        """SHA-256 of the device's initial client network and exit; None: they come from the seed."""
        return self._clients.initial_digest(self._cuts[device])

    def initial_client(self, device: str) -> Mapping[str, Tensor]:
        """The device's initial client network and exit, by name."""
        return self._clients.initial_weights(self._cuts[device])

    def tensors(self, device: str, names: Iterable[str]) -> dict[str, Tensor]:
        """Those of `names` that are held for a device, as many as a message may carry.

        If nothing is held for it, they are its initial ones, if these do not come from the seed.
        """
        return self._clients.select(device, self._cuts[device], names)

    def soft_labels(self, device: str) -> SoftLabels | None:
        """The soft labels that the device's exit learns from next; None: it learns from labels alone."""
        return self._soft_labels.of(device)

    def trunk_weights(self) -> dict[str, Tensor]:
        """All trunks' tensors, by names that do not depend on when devices joined."""
        return self._strategy.weights()

    def state(self) -> dict[str, Any]:
        """Everything that the next round depends on, as `load` takes it; tensors are shared, not copied."""
        return {
            "strategy": self._strategy.state(),
            "clients": self._clients.state(),
            "outdated": self._clients.outdated,
            "server_momentum": self._clients.momentum.state(),
            "class_mix": self._class_mix.state(),
            "soft_labels": self._soft_labels.state(),
            "left_out": self._loss_filter.state(),
            "samples": dict(self._committed),
            "fresh": self._fresh,
            **self._named_trunks().state(),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from a commit's `state`; this registers its devices, but not their numbers of samples.

        Raises:
            KeyError, RuntimeError: it is the state of another strategy or network.
        """
        self._strategy.load(state["strategy"])
        self._clients.load(state["clients"], state["outdated"])
        self._clients.momentum.load(state["server_momentum"])
        self._class_mix.load(state["class_mix"])
        self._soft_labels.load(state["soft_labels"])
        self._loss_filter.load(state["left_out"])
        self._trained, self._observed, self._fresh = {}, {}, state["fresh"]
        self._committed = dict(state["samples"])
        self._cuts = NamedTrunks.read(state).cuts
        self._supervise()

    # What the ranks of one server exchange

    def phase_state(self, devices: Collection[str], *, averages: bool) -> dict[str, Any]:
        """What another process needs for a phase with some of the devices; tensors are shared, not copied.

        `averages`: as in `Strategy.phase_state`.
        """
        return {
            "strategy": self._strategy.phase_state(devices, averages=averages),
            "clients": self._clients.exit_tensors(devices, self._cuts),
            "cuts": dict(self._cuts),
            "left_out": self._loss_filter.state(),
        }

    def load_phase_state(self, state: Mapping[str, Any]) -> None:
        """Begin a phase with `phase_state` and `training_state`; discards what was trained here."""
        self._strategy.load_phase_state(state["strategy"])
        self._clients.load(state["clients"])
        self._loss_filter = LossFilter(self.spec.largest_loss)
        self._loss_filter.load(state["left_out"])
        self._soft_labels = SoftLabelStore(self.spec)
        self._class_mix.end_round()
        self._trained, self._observed = {}, {}
        self._cuts = dict(state["cuts"])
        self._supervise()

    def training_state(self, device: str) -> dict[str, Any]:
        """What training needs beside a trunk's tensors: momentum, and the counts of classes."""
        return {
            "momentum": self._strategy.momentum_state(device),
            "class_mix": self._class_mix.of(device),
        }

    def load_training_state(self, device: str, state: Mapping[str, Any]) -> None:
        """Load `training_state`."""
        self._strategy.load_momentum_state(device, state["momentum"])
        self._class_mix.take(state["class_mix"])

    def part_of_step(self, lanes: range) -> dict[str, Any]:
        """As `Strategy.part_of_step`."""
        return self._strategy.part_of_step(lanes)

    def end_step(self, *others: Mapping[str, Any], lanes: range) -> dict[str, Tensor]:
        """As `Strategy.end_step`."""
        return self._strategy.end_step(*others, lanes=lanes)

    def move_to(self, places: Mapping[str, Tensor]) -> None:
        """As `Strategy.move_to`."""
        self._strategy.move_to(places)

    def follow_step(self, changed: Mapping[str, Tensor]) -> None:
        """As `Strategy.follow_step`."""
        self._strategy.follow_step(changed)

    def round_result(self, device: str) -> dict[str, Any]:
        """What has changed since `load_phase_state`, for the rank that commits; frees the device's trunk."""
        return {
            "strategy": self._strategy.round_result(device),
            "class_mix": self._class_mix.of(device),
            "trained": self._trained.get(device, 0),
            "losses": list(self._loss_filter.losses(device)),
            "soft_labels": list(self._soft_labels.coming(device)),
        }

    def load_round_result(self, device: str, state: Mapping[str, Any]) -> None:
        """Load `round_result`, as if it had been trained here."""
        self._strategy.load_round_result(device, state["strategy"])
        self._class_mix.take(state["class_mix"])
        if state["trained"]:
            self._trained[device] = state["trained"]
        for loss in state["losses"]:
            self._loss_filter.add(device, loss)
        if state["soft_labels"]:
            self._soft_labels.take(device, state["soft_labels"])

    def observed_statistics(self, device: str) -> dict[str, Any]:
        """What has been observed of a device's trunk since `load_phase_state`; empty: nothing."""
        return self._observed[device].state() if device in self._observed else {}

    def load_observed_statistics(self, device: str, state: Mapping[str, Any]) -> None:
        """Load `observed_statistics`, as if it had been observed here."""
        if state:
            self._observed[device] = FreshStatistics(self._strategy.trunk(device))
            self._observed[device].load(state)

    def _supervise(self) -> None:
        if self.spec.deep_supervision:
            self._strategy.supervise(self._clients.exits(self._cuts))

    def _named_trunks(self) -> NamedTrunks:
        trunk_of = {device: self._strategy.shared_with(device) for device in self._cuts}
        trunks = {
            name: NamedTrunk(self._cuts[device], self._strategy.tensors(device))
            for device, name in trunk_of.items()
        }
        return NamedTrunks(trunks, trunk_of)
