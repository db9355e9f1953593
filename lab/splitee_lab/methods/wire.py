# SPDX-License-Identifier: Apache-2.0
"""Counts what a fleet would send in place of a simulation: its own messages, by purpose."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from splitee.protocol import routes
from splitee.protocol.codecs import EncodedTensor, decode_tensor, encode_tensor
from splitee.protocol.cut_batch import CutBatch
from splitee.protocol.fields import Phase, Purpose
from splitee.protocol.rounds import RoundOpen
from splitee.protocol.run_spec import RunSpec
from splitee.protocol.traffic import Direction, Tally, Traffic
from splitee.training.soft_labels import SoftLabels, pack_rows, rows_per_message
from splitee.training.weights import pack_weights

ATTEMPT = 1 << 60  # of messages: it takes as many bytes as a server's attempt, which is its start time

Key = tuple[Phase, int, tuple[tuple[str, torch.Size], ...]]


class Wire:
    """The wire between all devices of a simulation and its server, without acknowledgements."""

    def __init__(self, spec: RunSpec) -> None:
        self._spec = spec
        self._tally = Tally()
        self._sizes: dict[Key, int] = {}  # of weights' messages

    def take(self) -> Traffic:
        """The traffic since the last call."""
        tally, self._tally = self._tally, Tally()
        return tally.traffic()

    def batch(self, batch: CutBatch, phase: Phase, number: int, step: int) -> Tensor:
        """A device sends batch `step` of round `number`. Returns the features as the server gets them."""
        opened = RoundOpen(run=self._spec.run, round=number, attempt=ATTEMPT, phase=phase)
        message = batch.message(self._spec, opened, phase, step)
        self._tally.add("up", routes.FEATURES.purpose_in(phase), len(message.encode()))
        return _as_received(message.features)

    def weights(
        self, direction: Direction, number: int, tensors: Mapping[str, Tensor], phase: Phase = "train"
    ) -> None:
        """A device sends such tensors, or fetches them."""
        key = phase, number, tuple((name, tensor.shape) for name, tensor in tensors.items())
        if key not in self._sizes:
            alike = {name: torch.zeros(tensor.shape) for name, tensor in tensors.items()}
            packed = pack_weights(self._spec.run, number, ATTEMPT, alike, phase)
            self._sizes[key] = sum(map(len, packed))
        route = routes.WEIGHTS if direction == "up" else routes.HELD_WEIGHTS
        self._tally.add(direction, route.purpose_in(phase), self._sizes[key])

    def soft_labels(self, labels: SoftLabels) -> None:
        """A device fetches them."""
        for first in range(0, len(labels.probabilities), rows_per_message(labels)):
            [payload] = pack_rows(self._spec.run, ATTEMPT, labels, first)
            self._tally.add("down", routes.SOFT_LABELS.purpose, len(payload))

    def bare(self, direction: Direction, purpose: Purpose, size: int) -> None:
        """Count `size` bytes for which the fleet has no message."""
        self._tally.add(direction, purpose, size)


def across_the_wire(codec: str, features: npt.NDArray[np.float32]) -> Tensor:
    """Features as the server gets them."""
    return _as_received(encode_tensor(codec, features))


def _as_received(encoded: EncodedTensor) -> Tensor:
    array = decode_tensor(encoded)  # of fp32: a view of the message's bytes, which torch must not write
    return torch.from_numpy(array if array.flags.writeable else array.copy())
