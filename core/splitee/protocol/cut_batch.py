# SPDX-License-Identifier: Apache-2.0
"""A batch at the cut: the device sends it as `Features`, and the server trains or evaluates with it."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np
import numpy.typing as npt

from splitee.errors import MalformedMessage
from splitee.protocol.codecs import decode_tensor, encode_tensor
from splitee.protocol.encoding import MAX_PACKED
from splitee.protocol.fields import Phase
from splitee.protocol.labels import decode_entropy, decode_labels, encode_labels
from splitee.protocol.rounds import Features, RoundOpen
from splitee.protocol.run_spec import RunSpec

EVALUATION_BATCH = 64  # held-out samples in a batch


def oversized(spec: RunSpec, feature_shape: tuple[int, ...]) -> str:
    """Why the features of a batch at a cut do not fit into a message; empty if they do."""
    samples = max(spec.batch_size, EVALUATION_BATCH)
    size = 4 * samples * prod(feature_shape)
    if size <= MAX_PACKED:
        return ""
    return (
        f"the features of {samples} images take {size >> 20} MiB there, at most {MAX_PACKED >> 20} travel "
        "at once"
    )


@dataclass(frozen=True)
class CutBatch:
    """`features` float32 (B, ...), `labels` int64 (B,).

    In an evaluation also the exit's predictions: `exit_labels` int64 (B,) and `exit_entropy` (B,) in 0..1.
    """

    features: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    exit_labels: npt.NDArray[np.int64] | None = None
    exit_entropy: npt.NDArray[np.float32] | None = None

    def message(self, spec: RunSpec, opened: RoundOpen, phase: Phase, step: int) -> Features:
        """The message of this batch; it has the entropy as float16."""
        predicted: dict[str, bytes] = {}
        if self.exit_labels is not None and self.exit_entropy is not None:
            predicted["exit_labels"] = encode_labels(self.exit_labels, spec.num_classes)
            predicted["exit_entropy"] = self.exit_entropy.astype("<f2").tobytes()
        return Features(
            run=opened.run,
            round=opened.round,
            attempt=opened.attempt,
            phase=phase,
            step=step,
            features=encode_tensor(spec.codec, self.features),
            labels=encode_labels(self.labels, spec.num_classes),
            **predicted,
        )

    @classmethod
    def of(cls, message: Features, spec: RunSpec, feature_shape: tuple[int, ...]) -> CutBatch:
        """The batch of a message, whose features must have `feature_shape` per sample.

        Raises:
            MalformedMessage: it does not fit the run or the device's cut.
        """
        largest = max(spec.batch_size, EVALUATION_BATCH)
        if message.features.shape[0] > largest:
            raise MalformedMessage(f"{message.features.shape[0]} samples in a batch, at most {largest}")
        features = decode_tensor(message.features, feature_shape)
        labels = decode_labels(message.labels, len(features), spec.num_classes)
        if message.phase != "evaluate":
            return cls(features, labels)
        exit_labels = decode_labels(message.exit_labels, len(features), spec.num_classes)
        return cls(features, labels, exit_labels, decode_entropy(message.exit_entropy, len(features)))
