# SPDX-License-Identifier: Apache-2.0
"""torch describes its 500 operators anew for each ONNX export, half of its time: here once a process."""

from __future__ import annotations

import functools
from contextlib import suppress
from importlib import import_module


def describe_operators_once() -> None:
    """Changes nothing but the time: exports are the same bytes.

    The function is not of torch's public ones; where another version has none of that name, nothing is done.
    """
    with suppress(ImportError, AttributeError):
        lazy = import_module("torch.onnx._internal._lazy_import")
        apis = import_module(lazy.onnxscript_apis.__name__)
        if not hasattr(apis.get_torchlib_ops, "cache_info"):
            vars(apis)["get_torchlib_ops"] = functools.cache(apis.get_torchlib_ops)
