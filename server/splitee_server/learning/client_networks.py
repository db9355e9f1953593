"""The client networks that the server holds: averaged ones, those of moved devices, those to be released."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from splitee.networks.split import SplitNetwork
from splitee.protocol.run_spec import RunSpec
from splitee.training.state import weights_digest
from splitee.training.weights import CLIENT, EXIT, WeightsAssembler, client_model, select
from splitee_server.learning.averages import average_clients, weigh
from splitee_server.learning.clipping import clip_updates, contradict
from splitee_server.learning.means import Rule
from splitee_server.learning.strategies.base import Strategy

Weights = Mapping[str, Tensor]


class ClientNetworks:
    """By device, as of the last commit; they are there when a round has collected them."""

    def __init__(self, spec: RunSpec, network: SplitNetwork, strategy: Strategy) -> None:
        self._spec = spec
        self._network = network
        self._strategy = strategy
        self._held: dict[str, Weights] = {}
        self._digests: dict[str, str] = {}
        first = network.module.state_dict() if spec.clip_updates else {}
        self._initial = {name: tensor.clone() for name, tensor in first.items()}

    def __contains__(self, device: str) -> bool:
        return device in self._held

    def __getitem__(self, device: str) -> Weights:
        """Raises KeyError: no network of this device is held."""
        return self._held[device]

    def assembler(self, cut: int) -> WeightsAssembler:
        """Takes the messages of a device with this cut."""
        return WeightsAssembler(client_model(self._network, cut, self._spec).state_dict())

    def commit(
        self, received: Mapping[str, Weights], cuts: Mapping[str, int], samples: Mapping[str, int]
    ) -> None:
        """Average what a round has collected, where the run does; trunks take part as the setting says.

        Args:
            received: client networks of devices that have finished the round; they are averaged in place.
            cuts: of all devices. One that was absent takes the average of its cut, or keeps what is held.
            samples: that the trunk was trained with, of the devices that have finished the round. One with
                none does not count, and takes the average as one that was absent.
        """
        before = self._held
        absent = {device: weights for device, weights in before.items() if device not in samples}
        self._held = {**absent, **received}
        if self._spec.client_averaging != "none":
            counting = {device: weights for device, weights in received.items() if samples[device]}
            apart: set[int] = set()
            if self._spec.clip_updates:
                starts = {device: self._start(device, cuts[device], before) for device in counting}
                clip_updates(counting, starts, self._spec.clip_updates)
                apart = self._apart(counting, starts, cuts)
            average_clients(
                self._spec.client_averaging,
                received,
                self._strategy,
                {device: cuts[device] for device in received},
                weigh(samples, self._spec.weighting),
                Rule.of(self._spec),
                apart,
            )
            for device, cut in cuts.items():
                peer = self._same_cut_peer(cut, cuts, counting)
                if device not in counting and peer is not None:
                    self._held[device] = counting[peer]
        self._digests = {}

    @staticmethod
    def _apart(
        trained: Mapping[str, Weights], starts: Mapping[str, Weights], cuts: Mapping[str, int]
    ) -> set[int]:
        """The cuts of just two devices whose exits have learnt the contrary of each other."""
        by_cut: dict[int, list[str]] = {}
        for device in sorted(trained):
            by_cut.setdefault(cuts[device], []).append(device)
        found = set()
        for cut, pair in by_cut.items():
            updates = [trained[device] for device in pair], [starts[device] for device in pair]
            if len(pair) == 2 and contradict(*updates, EXIT):
                found.add(cut)
        return found

    def adopt(self, device: str, cut: int, cuts: Mapping[str, int]) -> None:
        """A device whose network is not held takes over the average of its cut, if there is one."""
        peer = self._same_cut_peer(cut, cuts, self._held)
        if self._spec.client_averaging != "none" and device not in self._held and peer is not None:
            self._held[device] = self._held[peer]

    def move(self, moves: Mapping[str, int], cuts: Mapping[str, int]) -> None:
        """Cut devices elsewhere: stages keep their weights, on whichever side they are.

        An exit is that of the others at that cut, where client networks are averaged, else a new one.

        Args:
            moves: the new cuts, of devices whose networks are held.
            cuts: of all devices until now.
        """
        before = dict(self._held)
        for device, cut in sorted(moves.items()):
            peer = self._same_cut_peer(cut, cuts, before)
            exit_from = {} if peer is None or self._spec.client_averaging == "none" else before[peer]
            self._held[device] = self._moved(device, cut, before[device], exit_from)
            self._digests.pop(device, None)

    def digest(self, device: str) -> str:
        """SHA-256 of the network that is held for a device. Raises KeyError: there is none."""
        if device not in self._digests:
            self._digests[device] = weights_digest(self._held[device])
        return self._digests[device]

    def select(self, device: str, names: Iterable[str]) -> dict[str, Tensor]:
        """Those of a device's tensors that it asks for, no more than a message holds."""
        return select(self._held.get(device, {}), names)

    def state(self) -> dict[str, Any]:
        return {device: dict(weights) for device, weights in self._held.items()}

    def load(self, state: Mapping[str, Any]) -> None:
        self._held, self._digests = dict(state), {}

    @staticmethod
    def _same_cut_peer(cut: int, cuts: Mapping[str, int], held: Mapping[str, Weights]) -> str | None:
        """The first device, by name, with this cut and a network among `held`."""
        return min((device for device in held if cuts.get(device) == cut), default=None)

    def _start(self, device: str, cut: int, held: Mapping[str, Weights]) -> Weights:
        """What a device has begun the round from: what was `held` for it, else the run's first weights."""
        if device in held:
            return held[device]
        fresh = client_model(self._network, cut, self._spec).state_dict()
        return {
            name: self._initial[name.removeprefix(CLIENT)] if name.startswith(CLIENT) else tensor
            for name, tensor in fresh.items()
        }

    def _moved(self, device: str, cut: int, own: Weights, exit_from: Weights) -> Weights:
        """The client network of `device` at its new cut; its trunk is moved with it.

        `exit_from`: holds the exit's tensors; those it lacks are new.
        """
        trunk = self._strategy.trunk(device).state_dict()
        moved = {}
        for name, fresh in client_model(self._network, cut, self._spec).state_dict().items():
            if name.startswith(CLIENT):
                source = own.get(name, trunk.get(name.removeprefix(CLIENT), fresh))
            else:
                source = exit_from.get(name, fresh)
            moved[name] = source.clone()
        stages = {n.removeprefix(CLIENT): tensor for n, tensor in own.items() if n.startswith(CLIENT)}
        self._strategy.move(device, cut, stages)
        return moved
