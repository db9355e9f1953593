# SPDX-License-Identifier: Apache-2.0
"""Received arrays as tensors: they share writable memory, and copy read-only memory."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from splitee.protocol.codecs import CODECS, decode_tensor, encode_tensor
from splitee.training.tensors import tensor_of


def test_tensor_shares_writable_memory_and_copies_read_only_memory() -> None:
    array = np.zeros(3, dtype=np.float32)
    tensor_of(array).fill_(1)
    assert array.tolist() == [1, 1, 1]
    array.flags.writeable = False
    tensor_of(array).fill_(2)
    assert array.tolist() == [1, 1, 1]


@pytest.mark.parametrize("codec", CODECS)
def test_features_of_each_codec_may_be_written_in_place(codec: str) -> None:
    """A network's first layer may do so; torch gives no warning."""
    encoded = encode_tensor(codec, np.linspace(0, 1, 8, dtype=np.float32).reshape(2, 4))
    before = bytes(encoded.data)
    torch.set_warn_always(True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            tensor_of(decode_tensor(encoded)).zero_()
    finally:
        torch.set_warn_always(False)
    assert encoded.data == before
