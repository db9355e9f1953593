"""The last committed trunks of a run that is still training, for devices that ask meanwhile."""

from __future__ import annotations

import torch

from splitee.inference.trunks import Entry
from splitee.inference.uncertainty import Array
from splitee.networks.split import build_for
from splitee.protocol.run_spec import RunSpec
from splitee_server.learning.strategies.base import Strategy, make_strategy
from splitee_server.rounds.checkpoints import Checkpoints


class CommittedTrunks:
    """A second set of trunks, read from the last commit when a device first asks after it.

    The set in training cannot answer: it is ahead of the client networks that devices have committed.
    """

    def __init__(self, spec: RunSpec, store: Checkpoints) -> None:
        self._spec = spec
        self._store = store
        self._round = 0
        self._newest = 0
        self._cuts: dict[str, int] = {}
        self._shapes: list[tuple[int, ...]] = []
        self._strategy: Strategy | None = None

    @property
    def run(self) -> str:
        return self._spec.run

    @property
    def round(self) -> int:
        return self._round

    def entry(self, device: str) -> Entry | None:
        """Where `device` enters the trunk of the last commit; None: it has no part in one."""
        self._follow()
        cut = self._cuts.get(device)
        if cut is None:
            return None
        if self._spec.strategy == "sequential":  # one device stands for all that share the trunk
            device = min(other for other, theirs in self._cuts.items() if theirs == cut)
        return Entry(device, cut, self._shapes[cut - 1])

    @torch.inference_mode()
    def logits(self, trunk: str, features: Array) -> Array:
        """`trunk`: the device that it is of. Features (B, ...) -> logits (B, classes)."""
        assert self._strategy is not None
        module = self._strategy.trunk(trunk)
        module.eval()
        logits: Array = module(torch.from_numpy(features)).numpy()
        return logits

    def _follow(self) -> None:
        newest = self._store.newest()
        committed = self._store.load() if newest != self._newest else None
        if committed is None:
            return
        self._newest = newest
        network = build_for(self._spec)
        self._shapes = [stage.feature_shape for stage in network.stages]
        self._strategy = make_strategy(network, self._spec)
        self._strategy.load(committed.strategy)
        self._cuts = dict(committed.strategy["cuts"])
        self._round = committed.round
