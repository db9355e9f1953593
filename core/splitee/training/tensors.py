# SPDX-License-Identifier: Apache-2.0
"""Conversion of received arrays to tensors."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor


def tensor_of(array: npt.NDArray[Any]) -> Tensor:
    """The array's own memory as a tensor; a copy if the array is read-only.

    The features of an fp32 message are a view of its bytes, and a network's first layer may write in place.
    """
    return torch.from_numpy(array if array.flags.writeable else array.copy())
