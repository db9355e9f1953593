# SPDX-License-Identifier: Apache-2.0
"""Soft labels: the trunk's predictions for a device's batches, from which its exit learns a round later.

This distils the trunk into the exit (Hinton et al. 2015, arXiv 1503.02531) without sending a gradient back:
only probabilities, two bytes each, for the device's own images.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from splitee.errors import MalformedMessage
from splitee.protocol.codecs import decode_tensor, encode_tensor
from splitee.protocol.rounds import SoftLabelRows
from splitee.protocol.run_spec import RunSpec
from splitee.training.epochs import steps_per_round
from splitee.training.weights import MESSAGE_BYTES

CODEC = "fp16"


@dataclass(frozen=True)
class SoftLabels:
    """A device's batches of one round, one after the other: `probabilities` (rows, classes) float16."""

    round: int
    probabilities: Tensor


def soften(logits: Tensor) -> Tensor:
    """The probabilities float16 (B, classes) that `logits` (B, classes) stand for."""
    return logits.detach().float().softmax(dim=1).half().cpu()


def rows_per_round(spec: RunSpec, samples: int) -> int:
    """Number of images that a device trains on in a round; repeated images count each time."""
    return steps_per_round(spec, samples) * min(spec.batch_size, samples)


def rows_per_message(labels: SoftLabels) -> int:
    """The number of rows that fit one message."""
    return max(1, MESSAGE_BYTES // (2 * labels.probabilities.shape[1]))


def pack_rows(run: str, attempt: int, labels: SoftLabels, first: int) -> Iterator[bytes]:
    """A message with as many rows from `first` on as fit; nothing past the end."""
    rows = labels.probabilities[first : first + rows_per_message(labels)]
    if len(rows):
        encoded = encode_tensor(CODEC, rows.float().numpy())
        yield SoftLabelRows(run=run, round=labels.round, attempt=attempt, first=first, rows=encoded).encode()


class SoftLabelsAssembler:
    """A device's soft labels while their messages come in."""

    def __init__(self, run: str, attempt: int, number: int, rows: int, classes: int) -> None:
        """`number`: the round of the soft labels."""
        self.run = run
        self._key = run, attempt, number
        self._rows = rows
        self._classes = classes
        self._received: list[Tensor] = []
        self.next_row = 0  # to be requested next

    @property
    def is_whole(self) -> bool:
        return self.next_row == self._rows

    def add(self, message: SoftLabelRows) -> None:
        """Rows that were not requested, or have already arrived, change nothing.

        Raises:
            MalformedMessage: they are not probabilities, or more than this device's images.
        """
        if (message.run, message.attempt, message.round, message.first) != (*self._key, self.next_row):
            return
        if message.rows.shape[0] > self._rows - self.next_row:
            raise MalformedMessage(f"SoftLabelRows: rows beyond the {self._rows} of the round")
        rows = decode_tensor(message.rows, (self._classes,))
        if not ((rows >= 0) & (rows <= 1)).all():
            raise MalformedMessage("SoftLabelRows: probabilities outside 0..1")
        self._received.append(torch.tensor(rows).half())
        self.next_row += len(rows)

    def labels(self) -> SoftLabels:
        """The soft labels, once all have arrived."""
        return SoftLabels(self._key[2], torch.cat(self._received))
