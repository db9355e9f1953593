# SPDX-License-Identifier: Apache-2.0
"""Imported, it exports a network: processes forked from here on need not load what exporting takes."""

from torch import nn

from splitee_export.graphs import trunk_graph

trunk_graph(nn.Linear(2, 2), (2,))
