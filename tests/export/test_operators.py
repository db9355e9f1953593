# SPDX-License-Identifier: Apache-2.0
"""torch's operators are described once, however many networks a process exports."""

from __future__ import annotations

from importlib import import_module

import pytest
from torch import nn
from torch.onnx._internal import _lazy_import
from torch.onnx._internal.exporter import _schemas

from splitee_export.graphs import trunk_graph


@pytest.mark.slow
def test_second_export_describes_no_operators_and_gives_the_same_bytes() -> None:
    network = nn.Linear(2, 2)
    first = trunk_graph(network, (2,))
    signatures = _schemas.op_signature_from_function.cache_info()
    second = trunk_graph(network, (2,))
    assert _schemas.op_signature_from_function.cache_info().misses == signatures.misses > 0
    described = import_module(_lazy_import.onnxscript_apis.__name__).get_torchlib_ops.cache_info()
    assert (described.misses, described.hits >= 1) == (1, True)
    assert first == second
