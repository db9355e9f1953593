# SPDX-License-Identifier: Apache-2.0
"""Makes torch describe its 500 operators once per process; for each export, that takes over half the time."""

from __future__ import annotations

import functools
from contextlib import suppress
from importlib import import_module


def cache_operators() -> None:
    """Changes only the time: exports are the same bytes.

    The functions are not part of torch's public ones. If a torch version lacks them, nothing is done.
    """
    with suppress(ImportError, AttributeError):
        lazy = import_module("torch.onnx._internal._lazy_import")
        _cache_results(lazy.onnxscript_apis.__name__, "get_torchlib_ops")
    with suppress(ImportError, AttributeError):
        _cache_results("torch.onnx._internal.exporter._schemas", "op_signature_from_function")


def _cache_results(module_name: str, name: str) -> None:
    """Have a function of a module cache its result."""
    module = import_module(module_name)
    function = getattr(module, name)
    if not hasattr(function, "cache_info"):
        setattr(module, name, functools.cache(function))
