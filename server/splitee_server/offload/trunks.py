# SPDX-License-Identifier: Apache-2.0
"""The committed trunks of a run that is still training, for predictions during the run."""

from __future__ import annotations

import torch

from splitee.inference.trunks import Entry
from splitee.inference.uncertainty import Array
from splitee.protocol.run_spec import RunSpec
from splitee.training.named_trunks import NamedTrunks
from splitee.training.tensors import tensor_of
from splitee_export.states import ServerState, server_state
from splitee_server.rounds.checkpoints import Checkpoints


class CommittedTrunks:
    """A second set of trunks, read from the last or the released commit at the first request after it.

    The trunks in training are of no use here: they are ahead of the devices' committed client networks.
    """

    def __init__(self, spec: RunSpec, store: Checkpoints) -> None:
        self._spec = spec
        self._store = store
        self._loaded = (0, 0)  # the round, and the commits saved until then
        self._state: ServerState | None = None

    @property
    def run(self) -> str:
        return self._spec.run

    @property
    def round(self) -> int:
        return self._state.round if self._state else 0

    def entry(self, device: str) -> Entry | None:
        """The trunk and cut of `device` in that commit; None: it has no part in it."""
        self._follow()
        if self._state is None or device not in self._state.cuts:
            return None
        cut = self._state.cuts[device]
        return Entry(self._state.first_user[device], cut, self._state.network.stages[cut - 1].feature_shape)

    @torch.inference_mode()
    def logits(self, trunk: str, features: Array) -> Array:
        """`trunk`: named by its device. Features (B, ...) -> logits (B, classes)."""
        assert self._state is not None
        logits: Array = self._state.trunks[trunk](tensor_of(features)).numpy()
        return logits

    def _follow(self) -> None:
        wanted = self._store.serving_round(), self._store.saves
        committed = self._store.load(wanted[0]) if wanted != self._loaded else None
        if committed is not None:
            self._loaded = wanted
            self._state = server_state(self._spec, committed.round, NamedTrunks.read(vars(committed)))
