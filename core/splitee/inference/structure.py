# SPDX-License-Identifier: Apache-2.0
"""A graph's structure by its digests, as devices keep them; graph_structure.py makes them, with onnx."""

from __future__ import annotations

import msgspec

from splitee.protocol.fields import Digest


class Structure(msgspec.Struct, frozen=True):
    """All of a graph but the values of its weights.

    Attributes:
        exact: digest of all of it.
        layers: digest of what a graph and its int8 form share: the layers without quantizers, and without
            what these make superfluous.
        is_int8: the graph has quantizers.
    """

    exact: Digest
    layers: Digest
    is_int8: bool
