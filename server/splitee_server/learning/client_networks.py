# SPDX-License-Identifier: Apache-2.0
"""The client networks that the server holds: averaged ones, those of moved devices, those to be released."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from splitee.networks.split import SplitNetwork
from splitee.protocol.run_spec import RunSpec
from splitee.training.batchnorm_statistics import is_statistic
from splitee.training.state import weights_digest
from splitee.training.weights import (
    CLIENT,
    EXIT,
    EXITS,
    WeightsAssembler,
    client_model,
    exit_name,
    exits_by_cut,
    select,
)
from splitee_server.learning.averages import average_clients, weigh
from splitee_server.learning.clipping import clip_updates, contradict
from splitee_server.learning.initial.weights import InitialWeights
from splitee_server.learning.means import Rule
from splitee_server.learning.server_momentum import ServerMomentum
from splitee_server.learning.strategies.base import Strategy

Weights = Mapping[str, Tensor]


class ClientNetworks:
    """Client networks by device, as of the last commit, if rounds collect them.

    Tensors of frozen stages are the same everywhere: they are neither sent nor averaged.
    """

    def __init__(
        self,
        spec: RunSpec,
        network: SplitNetwork,
        strategy: Strategy,
        initial: InitialWeights | None = None,
    ) -> None:
        """`initial`: the run's initial weights, which `network` has; None: they come from the seed."""
        self._spec = spec
        self._network = network
        self._strategy = strategy
        self._held: dict[str, Weights] = {}
        self._outdated: set[str] = set()  # of these, devices whose networks are older than the last commit
        self._digests: dict[str, str] = {}
        self._initial_digests: dict[int, str] = {}  # by cut
        self._likes: dict[int, Weights] = {}  # by cut
        self._momentum = ServerMomentum(spec.server_momentum)
        self._heads: dict[str, nn.Module] = {}  # exits that predict, by the digests of their networks
        own = network.module.state_dict()
        self._frozen = {f"{CLIENT}{name}": own[name] for name in network.frozen_keys}
        self._exits = initial.exits if initial is not None else {}
        self._initial = initial.tensors if initial is not None else {}
        self._sends_first = initial is not None
        if initial is None and spec.clip_updates:
            self._initial = {name: tensor.clone() for name, tensor in own.items()}

    def __contains__(self, device: str) -> bool:
        return device in self._held

    def __getitem__(self, device: str) -> Weights:
        """Raises KeyError: no network of this device is held."""
        return self._held[device]

    def assembler(self, cut: int) -> WeightsAssembler:
        """Takes the messages of a device with this cut."""
        like = self._like(cut)
        return WeightsAssembler(like, {name: self._frozen[name] for name in like if name in self._frozen})

    def statistics_assembler(self, cut: int) -> WeightsAssembler:
        """Takes the messages with such a device's statistics, except those of frozen stages."""
        like = self._like(cut)
        return WeightsAssembler(
            {name: like[name] for name in like if is_statistic(name) and name not in self._frozen}
        )

    def _like(self, cut: int) -> Weights:
        """Tensors of the names, shapes and types that a client network with this cut has, made once."""
        if cut not in self._likes:
            tensors = client_model(self._network, cut, self._spec).state_dict()
            self._likes[cut] = {name: tensor.detach().to("meta") for name, tensor in tensors.items()}
        return self._likes[cut]

    def absorb(self, statistics: Weights, cuts: Mapping[str, int]) -> None:
        """Put tensors into all networks of the last commit.

        Args:
            statistics: by the network's names, and those of `exits_by_cut`.
            cuts: of all devices.
        """
        new = {name: tensor.float() for name, tensor in statistics.items()}
        for device in self._held.keys() - self._outdated:
            self._held[device] = _with_averages(self._held[device], new, cuts[device])
        self._digests = {}

    def exit(self, device: str, cut: int) -> nn.Module:
        """A device's exit, to predict with. Raises KeyError: no network of this device is held."""
        digest = self.digest(device)
        if digest not in self._heads:
            self._heads[digest] = self._head(cut, exits_by_cut(self._held[device], cut)).eval()
        return self._heads[digest]

    def exits(self, cuts: Mapping[str, int]) -> dict[int, nn.Module]:
        """The fleet's exits by cut, for deep supervision; before the first commit the initial ones.

        `cuts`: of all devices.
        """
        held = _exits_of(self._held, cuts)
        heads: dict[int, nn.Module] = {}
        for at in sorted(set(self._spec.exit_cuts)):
            is_held = any(name.startswith(f"{EXITS}{at}.") for name in held)
            head = self._head(at, held if is_held else exits_by_cut(self.initial_weights(at), at))
            heads[at] = head.requires_grad_(requires_grad=False)
        return heads

    def _head(self, cut: int, exits: Weights) -> nn.Module:
        """The exit of a cut, whose tensors are among `exits`, named as by `exits_by_cut`."""
        head, prefix = self._network.exit_head(cut), f"{EXITS}{cut}."
        head.load_state_dict({n.removeprefix(prefix): t for n, t in exits.items() if n.startswith(prefix)})
        return head.to(next(self._network.module.parameters()).device)

    def initial_weights(self, cut: int) -> Weights:
        """The initial client network and exits of a device with this cut."""
        fresh = client_model(self._network, cut, self._spec).state_dict()
        exits = {
            f"{EXITS}{at}.{name}": tensor for at, own in self._exits.items() for name, tensor in own.items()
        }
        return {
            name: self._initial.get(name.removeprefix(CLIENT), fresh_one)
            if name.startswith(CLIENT)
            else _if_alike(exits.get(exit_name(name, cut)), fresh_one)
            for name, fresh_one in fresh.items()
        }

    def initial_digest(self, cut: int) -> str | None:
        """SHA-256 of `initial_weights`; None: it follows from the seed, and need not be sent."""
        if self._sends_first and cut not in self._initial_digests:
            self._initial_digests[cut] = weights_digest(self.initial_weights(cut))
        return self._initial_digests.get(cut)

    def commit(
        self,
        received: Mapping[str, Weights],
        cuts: Mapping[str, int],
        samples: Mapping[str, int],
    ) -> None:
        """Average what a round has collected, if the run does so; trunks take part as the setting says.

        Args:
            received: client networks of devices that have finished the round; they are averaged in place.
            cuts: of all devices. An absent device takes the average of its cut, or keeps what is held; if
                rounds sample devices, it takes the averages of its stages and exits then.
            samples: number that the trunk was trained on, by device that has finished the round. A device
                with none does not count, and takes the average like an absent one.
        """
        before, outdated = self._held, self._outdated
        self._outdated = set()
        received = {device: self._with_own_frozen(weights) for device, weights in received.items()}
        absent = {device: weights for device, weights in before.items() if device not in samples}
        self._held = {**absent, **received}
        if self._spec.client_averaging != "none":
            trained = {device: self._trained(weights) for device, weights in received.items()}
            counting = {device: weights for device, weights in trained.items() if samples[device]}
            apart: set[int] = set()
            if self._spec.clip_updates:
                starts = {
                    device: before.get(device) or self.initial_weights(cuts[device]) for device in counting
                }
                clip_updates(counting, starts, self._spec.clip_updates)
                apart = self._apart(counting, starts, cuts)
            means = average_clients(
                self._spec.client_averaging,
                trained,
                self._strategy,
                {device: cuts[device] for device in received},
                weigh(samples, self._spec.weighting),
                Rule.of(self._spec),
                apart,
            )
            committed = {device: before[device] for device in before.keys() - outdated}
            averages = self._apply_momentum(means, committed, trained, cuts)
            for device, cut in cuts.items():
                peer = self._same_cut_peer(cut, cuts, counting)
                if device not in counting and peer is not None:
                    self._held[device] = received[peer]
                elif self._spec.is_sampled and device not in received and averages:
                    own = self._held.get(device) or {
                        n: one.clone() for n, one in self.initial_weights(cut).items()
                    }
                    self._held[device] = _with_averages(own, averages, cut)
                elif device in absent:
                    self._outdated.add(device)
        self._digests, self._heads = {}, {}

    def _apply_momentum(
        self,
        means: Weights,
        last: Mapping[str, Weights],
        trained: Mapping[str, Weights],
        cuts: Mapping[str, int],
    ) -> Weights:
        """Apply the server's momentum to a round's averages: in its networks, in place, and in trunks.

        Args:
            means: of the round; last: the networks of the last commit; trained: those of the round.

        Returns:
            The averages as they are committed.
        """
        committed: dict[str, Tensor] = {}
        for device in sorted(last, reverse=True):
            committed |= by_network_names(last[device], cuts[device])
        carried = self._momentum.apply(means, committed)
        for device, weights in trained.items():
            own = by_network_names(weights, cuts[device])
            for name in own.keys() & carried.keys():
                own[name].copy_(carried[name])
        self._strategy.absorb(carried)
        return {**means, **carried}

    @staticmethod
    def _apart(
        trained: Mapping[str, Weights], starts: Mapping[str, Weights], cuts: Mapping[str, int]
    ) -> set[int]:
        """The cuts of exactly two devices whose exits' updates contradict each other."""
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
        current = self._held.keys() - self._outdated
        peer = self._same_cut_peer(cut, cuts, current) or self._same_cut_peer(cut, cuts, self._held)
        if self._spec.client_averaging != "none" and device not in self._held and peer is not None:
            self._held[device] = self._held[peer]
            if peer in self._outdated:
                self._outdated.add(device)

    def move(self, moves: Mapping[str, int], cuts: Mapping[str, int]) -> None:
        """Change devices' cuts: stages keep their weights, on whichever side they are.

        An exit is that of the other devices with that cut, if client networks are averaged, or the device's
        own, if it has trained one there; otherwise it is new.

        Args:
            moves: the new cuts, of devices whose networks are held.
            cuts: of all devices until now.
        """
        before = dict(self._held)
        for device, cut in sorted(moves.items()):
            exits = exits_by_cut(before[device], cuts[device])
            if self._spec.client_averaging != "none":
                exits |= _exits_of(before, cuts)
            self._held[device] = self._moved(device, cut, before[device], exits)
            self._digests.pop(device, None)

    def digest(self, device: str) -> str:
        """SHA-256 of the network that is held for a device. Raises KeyError: there is none."""
        if device not in self._digests:
            self._digests[device] = weights_digest(self._held[device])
        return self._digests[device]

    def select(self, device: str, cut: int, names: Iterable[str]) -> dict[str, Tensor]:
        """The tensors that a device requests, as many as fit one message.

        If nothing is held for the device, they are its initial ones, if the server sends these.
        """
        if device not in self._held and self._sends_first and (names := list(names)):
            return select(self.initial_weights(cut), names)
        return select(self._held.get(device, {}), names)

    def state(self) -> dict[str, Any]:
        return {device: dict(weights) for device, weights in self._held.items()}

    def load(self, state: Mapping[str, Any], outdated: Iterable[str] = ()) -> None:
        self._held, self._digests, self._heads = dict(state), {}, {}
        self._outdated = set(outdated)

    def exit_tensors(self, devices: Iterable[str], cuts: Mapping[str, int]) -> dict[str, Weights]:
        """The held exits of these devices and of the first device of each cut, by device.

        `cuts`: of all devices. Beside trunks, training and prediction need nothing else.
        """
        firsts = {self._same_cut_peer(cut, cuts, self._held) for cut in set(cuts.values())}
        return {
            device: {n: tensor for n, tensor in self._held[device].items() if n.startswith((EXIT, EXITS))}
            for device in sorted({*devices, *filter(None, firsts)})
            if device in self._held
        }

    @property
    def outdated(self) -> list[str]:
        """The devices whose networks are older than the last commit: no device at their cut was in it."""
        return sorted(self._outdated)

    @property
    def momentum(self) -> ServerMomentum:
        """The momentum of the averages; its state is separate from `state`."""
        return self._momentum

    @staticmethod
    def _same_cut_peer(cut: int, cuts: Mapping[str, int], held: Iterable[str]) -> str | None:
        """The first device, by name, with this cut and a network among `held`."""
        return min((device for device in held if cuts.get(device) == cut), default=None)

    def _with_own_frozen(self, weights: Weights) -> Weights:
        """A client network with the server's tensors in frozen stages, whatever the device holds there."""
        return {name: self._frozen.get(name, tensor) for name, tensor in weights.items()}

    def _trained(self, weights: Weights) -> Weights:
        """Those of a client network's tensors that devices train."""
        return {name: tensor for name, tensor in weights.items() if name not in self._frozen}

    def _moved(self, device: str, cut: int, own: Weights, exits: Weights) -> Weights:
        """The client network of `device` at its new cut; its trunk is moved with it.

        `exits`: as `exits_by_cut` names them; those that are not among them are new.
        """
        trunk = self._strategy.tensors(device)
        moved = {}
        for name, fresh in client_model(self._network, cut, self._spec).state_dict().items():
            if name.startswith(CLIENT):
                source = own.get(name, trunk.get(name.removeprefix(CLIENT), fresh))
            else:
                source = exits.get(exit_name(name, cut), fresh)
            moved[name] = source.clone()
        stages = {n.removeprefix(CLIENT): tensor for n, tensor in own.items() if n.startswith(CLIENT)}
        self._strategy.move(device, cut, stages)
        return moved


def _with_averages(weights: Weights, averages: Weights, cut: int) -> dict[str, Tensor]:
    """The client network of a device with this cut, with the averages of the tensors that have one.

    `averages`: by the network's names, and those of `exits_by_cut`.
    """
    return {
        name: averages.get(exit_name(name, cut).removeprefix(CLIENT), tensor)
        for name, tensor in weights.items()
    }


def by_network_names(weights: Weights, cut: int) -> dict[str, Tensor]:
    """A client network's tensors as the network names them, and its exits' as `exits_by_cut` does."""
    stages = {name.removeprefix(CLIENT): one for name, one in weights.items() if name.startswith(CLIENT)}
    return {**stages, **exits_by_cut(weights, cut)}


def _exits_of(held: Mapping[str, Weights], cuts: Mapping[str, int]) -> dict[str, Tensor]:
    """All held exits: each from the first device, by name, with its cut, or else with another cut."""
    found: dict[str, Tensor] = {}
    for own in (EXIT, EXITS):
        for device in sorted(device for device in held if device in cuts):
            exits = {name: tensor for name, tensor in held[device].items() if name.startswith(own)}
            found = {**exits_by_cut(exits, cuts[device]), **found}
    return found


def _if_alike(tensor: Tensor | None, fresh: Tensor) -> Tensor:
    """`tensor`, if it has the shape of `fresh`; otherwise `fresh`."""
    return tensor if tensor is not None and tensor.shape == fresh.shape else fresh
