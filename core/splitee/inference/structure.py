# SPDX-License-Identifier: Apache-2.0
"""A graph's structure as digests that devices store; graph_structure.py computes them, with onnx."""

from __future__ import annotations

import msgspec

from splitee.protocol.fields import Digest


class Structure(msgspec.Struct, frozen=True):
    """The structure of a graph: everything but the values of its weights.

    Attributes:
        exact: digest of all of it.
        layers: digest of what a graph and its int8 form have in common: the layers without quantizers, and
            without what these make superfluous.
        is_int8: the graph has quantizers.
    """

    exact: Digest
    layers: Digest
    is_int8: bool
