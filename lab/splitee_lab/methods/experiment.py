# SPDX-License-Identifier: Apache-2.0
"""The input of every method of a comparison, and its result of each round."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import msgspec

from splitee.networks.split import SplitNetwork, build_for
from splitee.protocol.accuracies import Accuracies
from splitee.protocol.run_spec import RunSpec
from splitee.protocol.traffic import Traffic
from splitee.training.compute import fleet_round_macs, round_macs
from splitee.training.epochs import steps_per_round
from splitee_device.data.image_sets import LabelledImages
from splitee_lab.methods.simulation import SimulatedDevice, build_at
from splitee_server.learning.initial.weights import InitialWeights

SERVER = "server"  # in `accuracies`: of the one network that all clients share


class Accuracy(msgspec.Struct, frozen=True, omit_defaults=True):
    """Shares of the held-out images of one client; `accuracy`: of its trunk, or of the whole network."""

    accuracy: float | None = None  # None: it has an exit only
    exit_accuracy: float | None = None
    adaptive_accuracy: float | None = None
    offload_share: float | None = None

    @classmethod
    def of(cls, found: Accuracies) -> Accuracy:
        return cls(found.trunk_accuracy, found.exit_accuracy, found.adaptive_accuracy, found.offload_share)


class RoundResult(msgspec.Struct, frozen=True):
    """One round of a method.

    Attributes:
        accuracies: by client; empty if the round was not evaluated.
        bytes: that all devices have sent and received in it; not those of evaluation, which methods without
            a server need not send.
        macs: multiply-accumulates of all devices in it, for training.
        traffic: the bytes by purpose, those of evaluation too; None: written by an earlier release.
    """

    round: int
    accuracies: dict[str, Accuracy]
    bytes: int
    macs: int
    traffic: Traffic | None = None

    @classmethod
    def of(cls, number: int, accuracies: dict[str, Accuracy], traffic: Traffic, macs: int) -> RoundResult:
        """The result of round `number`. `traffic`: of all devices together."""
        without = traffic.payload - traffic.up.evaluation - traffic.down.evaluation
        return cls(number, accuracies, without, macs, traffic)


@dataclass(frozen=True)
class Experiment:
    """The clients with their cuts and images, and the run's settings; `on_batch`: called after each one."""

    spec: RunSpec
    devices: Mapping[str, SimulatedDevice]
    evaluate_every: int = 1  # rounds; the last one is always evaluated
    on_batch: Callable[[], None] = lambda: None
    place: str = "cpu"  # torch's name of where the networks are
    initial: InitialWeights | None = None  # of all networks; None: from the seed
    resident: int = 0  # trunks in memory at a time, if each device has one; 0: all

    @cached_property
    def network(self) -> SplitNetwork:
        """The network, for its description; each method builds its own to train."""
        return build_for(self.spec)

    @cached_property
    def samples(self) -> dict[str, int]:
        """Number of training images by client, in the order of the names."""
        return {name: len(self.devices[name].data.train) for name in sorted(self.devices)}

    @property
    def held_out(self) -> LabelledImages:
        """The held-out images, which all clients of an experiment share."""
        return next(iter(self.devices.values())).data.held_out

    def build(self) -> SplitNetwork:
        """A network to train, with the run's initial weights."""
        return build_at(self.spec, self.place, self.initial)

    def is_evaluated(self, number: int) -> bool:
        return number % self.evaluate_every == 0 or number == self.spec.rounds

    def batches(self, samples: int) -> int:
        """Batches of a round on `samples` images."""
        return steps_per_round(self.spec, samples)

    def macs(self, name: str, cut: int | None, exits: Sequence[int] = ()) -> int:
        """Multiply-accumulates of client `name` in one round, to train stages 1..cut and these `exits`.

        `cut` None: the whole network.
        """
        return round_macs(self.network, self.spec, self.samples[name], cut, exits)

    def fleet_macs(self, name: str) -> int:
        """Multiply-accumulates of client `name` in one round of the fleet."""
        return fleet_round_macs(self.network, self.spec, self.samples[name], self.devices[name].cut)

    @property
    def centralized_spec(self) -> RunSpec:
        """The run's settings for one network on all images: a given number of steps is that of one client."""
        return msgspec.structs.replace(self.spec, steps=self.spec.steps * len(self.samples))

    def trained(self, name: str) -> int:
        """Samples in the batches of client `name` in one round."""
        samples = self.samples[name]
        return self.batches(samples) * min(self.spec.batch_size, samples)
