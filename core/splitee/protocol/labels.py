# SPDX-License-Identifier: Apache-2.0
"""Labels and entropies of a batch as bytes, and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from splitee.errors import MalformedMessage


def label_type(num_classes: int) -> np.dtype[Any]:
    """The narrowest unsigned type that holds `num_classes` labels."""
    return np.dtype("u1") if num_classes <= 1 << 8 else np.dtype("<u2")


def encode_labels(labels: npt.NDArray[np.int64], num_classes: int) -> bytes:
    return labels.astype(label_type(num_classes)).tobytes()


def decode_labels(data: bytes, count: int, num_classes: int) -> npt.NDArray[np.int64]:
    """`count` labels below `num_classes`.

    Raises:
        MalformedMessage: another number of labels, or one out of range.
    """
    kind = label_type(num_classes)
    if len(data) != count * kind.itemsize:
        raise MalformedMessage(f"labels take {len(data)} bytes, {count} samples need {count * kind.itemsize}")
    labels = np.frombuffer(data, dtype=kind).astype(np.int64)
    if count and int(labels.max()) >= num_classes:
        raise MalformedMessage(f"label {int(labels.max())} in a run of {num_classes} classes")
    return labels


def decode_entropy(data: bytes, count: int) -> npt.NDArray[np.float32]:
    """`count` normalised entropies in 0..1.

    Raises:
        MalformedMessage: another number of values, or one out of range.
    """
    if len(data) != 2 * count:
        raise MalformedMessage(f"exit_entropy takes {len(data)} bytes, {count} samples need {2 * count}")
    entropy = np.frombuffer(data, dtype="<f2").astype(np.float32)
    if not ((entropy >= 0) & (entropy <= 1)).all():
        raise MalformedMessage("exit_entropy has values outside 0..1")
    return entropy
