# SPDX-License-Identifier: Apache-2.0
"""Soft labels as messages: bounded, in order, exact to the bit, and probabilities only."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from splitee.errors import MalformedMessage
from splitee.protocol.codecs import encode_tensor
from splitee.protocol.rounds import SoftLabelRows
from splitee.protocol.run_spec import RunSpec
from splitee.training.soft_labels import SoftLabels, SoftLabelsAssembler, pack_rows, rows_per_round, soften
from splitee.training.weights import MESSAGE_BYTES

CLASSES = 1000
ROWS = 3000  # 6 MB, which is two messages


@pytest.fixture(scope="module")
def sent() -> SoftLabels:
    logits = torch.randn(ROWS, CLASSES, generator=torch.Generator().manual_seed(1)) * 5
    return SoftLabels(4, soften(logits))


def new_assembler(rows: int = ROWS) -> SoftLabelsAssembler:
    return SoftLabelsAssembler("r", 7, 4, rows, CLASSES)


def message(labels: SoftLabels, first: int) -> SoftLabelRows:
    payload = next(pack_rows("r", 7, labels, first))
    assert len(payload) < MESSAGE_BYTES + 200
    return SoftLabelRows.decode(payload)


def test_soft_labels_arrive_in_two_messages_as_sent(sent: SoftLabels) -> None:
    assembler = new_assembler()
    requested = []
    while not assembler.is_whole:
        requested.append(assembler.next_row)
        assembler.add(message(sent, assembler.next_row))
    assert len(requested) == 2
    assert assembler.labels().round == sent.round
    assert torch.equal(assembler.labels().probabilities, sent.probabilities)
    assert list(pack_rows("r", 7, sent, ROWS)) == []


def test_rows_that_were_not_requested_are_ignored(sent: SoftLabels) -> None:
    assembler = new_assembler()
    assembler.add(message(sent, 10))
    assembler.add(SoftLabelRows.decode(next(pack_rows("r", 6, sent, 0))))
    assembler.add(SoftLabelRows.decode(next(pack_rows("other", 7, sent, 0))))
    assert assembler.next_row == 0
    first = message(sent, 0)
    assembler.add(first)
    assembler.add(first)
    assert assembler.next_row == first.rows.shape[0]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (np.full((2, CLASSES), 1.5, np.float32), "outside 0..1"),
        (np.full((2, CLASSES), -0.1, np.float32), "outside 0..1"),
        (np.zeros((2, CLASSES - 1), np.float32), "expected"),
        (np.zeros((6, CLASSES), np.float32), "beyond the 5"),
    ],
)
def test_rows_with_invalid_values_or_shapes_are_refused(rows: np.ndarray, said: str) -> None:
    assembler = new_assembler(rows=5)
    bad = SoftLabelRows(run="r", round=4, attempt=7, first=0, rows=encode_tensor("fp16", rows))
    with pytest.raises(MalformedMessage, match=said):
        assembler.add(bad)
    assert assembler.next_row == 0


@pytest.mark.parametrize(
    ("samples", "steps", "rows"), [(100, 0, 96), (10, 0, 10), (100, 5, 160), (10, 5, 50)]
)
def test_rows_of_a_round_follow_samples_and_steps(samples: int, steps: int, rows: int) -> None:
    run = RunSpec(protocol=1, run="r", network="n", num_classes=10, rounds=1, batch_size=32, steps=steps)
    assert rows_per_round(run, samples) == rows
