"""The models of a fleet, and what a commit does to them: trunks, client networks, soft labels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from splitee.networks.split import SplitNetwork
from splitee.protocol.run_spec import RunSpec
from splitee.training.soft_labels import SoftLabels
from splitee.training.weights import WeightsAssembler
from splitee_server.learning.client_networks import ClientNetworks
from splitee_server.learning.soft_labels import SoftLabelStore
from splitee_server.learning.strategies.base import make_strategy


@dataclass(frozen=True)
class Contribution:
    """What a device has brought to a round: how many samples, its client network, the cut it asks for."""

    samples: int
    weights: Mapping[str, Tensor] | None = None  # averaged in place; None: it sends none
    next_cut: int = 0  # 0: it stays


class FleetModel:
    def __init__(self, spec: RunSpec, network: SplitNetwork) -> None:
        self.network = network
        self._spec = spec
        self._strategy = make_strategy(network, spec)
        self._clients = ClientNetworks(spec, network, self._strategy)
        self._soft_labels = SoftLabelStore(spec)
        self._cuts: dict[str, int] = {}

    @property
    def order(self) -> Literal["step", "device", "any"]:
        return self._strategy.order

    def stage_name(self, cut: int) -> str:
        return self.network.stages[cut - 1].name

    def feature_shape(self, cut: int) -> tuple[int, ...]:
        return self.network.stages[cut - 1].feature_shape

    def join(self, device: str, cut: int, samples: int) -> None:
        self._strategy.join(device, cut)
        self._soft_labels.count(device, samples)
        self._cuts[device] = cut

    def adopt(self, device: str) -> None:
        self._clients.adopt(device, self._cuts[device], self._cuts)

    def assembler(self, cut: int) -> WeightsAssembler:
        return self._clients.arrival(cut)

    def train(
        self, device: str, features: Tensor, labels: Tensor, *, round_number: int, step: int, steps: int
    ) -> float:
        loss, logits = self._strategy.train(
            device, features, labels, round_number=round_number, step=step, steps=steps
        )
        self._soft_labels.add(device, round_number, logits)
        return loss

    def predict(self, device: str, features: Tensor) -> Tensor:
        return self._strategy.predict(device, features)

    def commit(self, number: int, contributions: Mapping[str, Contribution]) -> dict[str, int]:
        samples = {device: contribution.samples for device, contribution in contributions.items()}
        self._soft_labels.end_round(number, contributions)
        self._strategy.aggregate(samples)
        received = {d: c.weights for d, c in contributions.items() if c.weights is not None}
        self._clients.end_round(received, self._cuts, samples)
        moved = {d: c.next_cut for d, c in sorted(contributions.items()) if c.next_cut}
        self._clients.move(moved, self._cuts)
        self._cuts.update(moved)
        return moved

    def holds(self, device: str) -> bool:
        return device in self._clients

    def digest(self, device: str) -> str:
        return self._clients.digest(device)

    def tensors(self, device: str, names: Iterable[str]) -> dict[str, Tensor]:
        return self._clients.some(device, names)

    def soft_labels(self, device: str) -> SoftLabels | None:
        return self._soft_labels.of(device)

    def trunk_weights(self) -> dict[str, Tensor]:
        return self._strategy.weights()

    def state(self) -> dict[str, Any]:
        return {
            "strategy": self._strategy.state(),
            "clients": self._clients.state(),
            "soft_labels": self._soft_labels.state(),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        self._strategy.load(state["strategy"])
        self._clients.load(state["clients"])
        self._soft_labels.load(state["soft_labels"])
        self._cuts = dict(state["strategy"]["cuts"])
